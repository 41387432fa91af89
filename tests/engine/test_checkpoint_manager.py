import errno
import json
import os
import shutil
import threading
import time

import pytest

import sslgh.engine.checkpoint_manager as module
from sslgh.engine.checkpoint import CheckpointError
from sslgh.engine.checkpoint_manager import (
    CheckpointWriter,
    clean_up,
    drop_old,
    last_whole_checkpoint,
    list_checkpoints,
)


def names(folder) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_checkpoints_are_listed_in_the_order_of_the_run_not_of_their_names(tmp_path, save) -> None:
    for place in ((1, 0, 10), (1, 1, 9), (0, 5, 100)):
        save(tmp_path, *place)
    (tmp_path / ".step-000000101.tmp").mkdir()
    assert names(tmp_path) == ["step-000000100", "step-000000010", "step-000000009"]


def test_the_latest_stay_and_those_of_every_few_epochs(tmp_path, save) -> None:
    for epoch in range(1, 7):
        save(tmp_path, epoch, 0, epoch)
    save(tmp_path, 6, 2, 8)
    newest = tmp_path / "step-000000008"
    drop_old(tmp_path, newest, keep_last=2, keep_every=2)
    assert [int(name[5:]) for name in names(tmp_path)] == [2, 4, 6, 8]
    drop_old(tmp_path, newest, keep_last=1, keep_every=None)
    assert [int(name[5:]) for name in names(tmp_path)] == [8]


@pytest.mark.parametrize("keep_last", range(1, 10))
def test_as_many_stay_as_were_asked_for(tmp_path, save, keep_last) -> None:
    for epoch in range(1, 13):
        newest = save(tmp_path, epoch, 0, epoch)
        drop_old(tmp_path, newest, keep_last=keep_last, keep_every=None)
        latest = range(max(epoch - keep_last, 0) + 1, epoch + 1)
        assert [int(name[5:]) for name in names(tmp_path)] == list(latest)


@pytest.mark.parametrize("keep_last", [1, 2])
def test_one_that_cannot_be_read_never_takes_the_room_of_a_whole_one(
    tmp_path, save, keep_last
) -> None:
    save(tmp_path, 1, 0, 1)
    torn = save(tmp_path, 2, 0, 2)
    (torn / "progress.json").unlink()
    newest = save(tmp_path, 3, 0, 3)
    drop_old(tmp_path, newest, keep_last=keep_last, keep_every=None)
    kept = ["step-000000001", newest.name][-keep_last:]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
def test_a_fault_that_may_pass_sets_no_good_checkpoint_aside(
    tmp_path, save, monkeypatch, number
) -> None:
    path = save(tmp_path)
    import sslgh.engine.checkpoint_manager as module  # noqa: PLC0415

    def unreachable(folder) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "check_manifest", unreachable)
    with pytest.raises(OSError, match=os.strerror(number)):
        last_whole_checkpoint(tmp_path)
    assert path.is_dir()


@pytest.mark.parametrize(
    "file", ["module.safetensors", "aux_state.safetensors", "optimizer.pt", "progress.json"]
)
@pytest.mark.parametrize("fault", ["altered", "cut", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path, save, file, fault
) -> None:
    before = save(tmp_path, 1, 0, 1)
    after = save(tmp_path, 2, 0, 2)
    content = bytearray((after / file).read_bytes())
    content[len(content) // 2] ^= 1
    if fault == "altered":
        (after / file).write_bytes(content)
    elif fault == "cut":
        (after / file).write_bytes(content[:-1])
    else:
        (after / file).unlink()
    found, said = last_whole_checkpoint(tmp_path)
    assert found == before
    assert len(said) == 1
    words = {"altered": f"{file} was altered", "cut": f"{file} has ", "gone": f"{file} is missing"}
    assert words[fault] in said[0]
    assert names(tmp_path) == [before.name]
    assert (tmp_path / "step-000000002.damaged").is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"files": 3}', "{" * 100_000])
def test_a_manifest_that_is_none_is_noticed(tmp_path, save, text) -> None:
    before, after = save(tmp_path, 1, 0, 1), save(tmp_path, 2, 0, 2)
    (after / "manifest.json").write_text(text)
    found, said = last_whole_checkpoint(tmp_path)
    assert found == before
    assert "manifest.json" in said[0]


def test_a_manifest_that_no_longer_lists_a_file_is_noticed(tmp_path, save) -> None:
    before, after = save(tmp_path, 1, 0, 1), save(tmp_path, 2, 0, 2)
    manifest = json.loads((after / "manifest.json").read_text())
    del manifest["files"]["progress.json"]
    (after / "manifest.json").write_text(json.dumps(manifest))
    assert last_whole_checkpoint(tmp_path)[0] == before


def test_where_none_is_whole_the_run_does_not_begin_anew_in_silence(tmp_path, save) -> None:
    path = save(tmp_path)
    (path / "optimizer.pt").write_bytes(b"")
    for _ in range(2):  # nor when it is tried again
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
            last_whole_checkpoint(tmp_path)


def test_no_checkpoint_is_no_fault(tmp_path) -> None:
    assert last_whole_checkpoint(tmp_path) == (None, [])


def test_a_checkpoint_of_an_older_format_is_refused_not_set_aside(tmp_path, save) -> None:
    path = save(tmp_path)
    (path / "manifest.json").unlink()
    (path / "progress.json").write_text(
        '{"format": 2, "epoch": 1, "step_in_epoch": 0, "global_step": 4}'
    )
    with pytest.raises(CheckpointError, match="checkpoint format 2, this sslgh resumes from 4"):
        last_whole_checkpoint(tmp_path)
    assert path.is_dir()


def test_a_format_digit_that_was_altered_is_damage(tmp_path, save) -> None:
    before, after = save(tmp_path, 1, 0, 1), save(tmp_path, 2, 0, 2)
    text = (after / "progress.json").read_text()
    (after / "progress.json").write_text(text.replace('"format": 4', '"format": 7'))
    assert last_whole_checkpoint(tmp_path)[0] == before


def test_a_kill_between_two_renames_loses_nothing(tmp_path, save) -> None:
    path = save(tmp_path)
    path.rename(tmp_path / f".{path.name}.old")
    shutil.copytree(tmp_path / f".{path.name}.old", tmp_path / f".{path.name}.tmp")
    clean_up(tmp_path)
    assert last_whole_checkpoint(tmp_path) == (path, [])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_to_still_gives_its_last_whole_checkpoint(
    unprivileged, save
) -> None:
    before, after = save(unprivileged, 1, 0, 1), save(unprivileged, 2, 0, 2)
    (after / "optimizer.pt").write_bytes(b"")
    unprivileged.chmod(0o500)
    assert last_whole_checkpoint(unprivileged)[0] == before
    assert after.is_dir()


def steps(folder) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder)]


@pytest.fixture
def gate(monkeypatch):
    """Holds every write until it is opened."""
    opened = threading.Event()
    original = module.write_checkpoint

    def write(directory, snapshot):
        opened.wait(10)
        return original(directory, snapshot)

    monkeypatch.setattr(module, "write_checkpoint", write)
    return opened


def leave(writer, taken, error) -> None:
    """What a run does that fails after it has handed over a snapshot."""
    with writer:
        writer.submit(taken)
        raise error


def test_training_does_not_wait_for_the_disk_and_the_newest_is_written(
    tmp_path, snapshot, gate
) -> None:
    with CheckpointWriter(tmp_path, print, keep_last=9, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        while writer._queue.qsize():
            time.sleep(0.001)
        for epoch in (2, 3, 4):  # while the first is being written
            writer.submit(snapshot(epoch, 0, epoch))
        assert steps(tmp_path) == []
        gate.set()
        writer.finish()
        assert steps(tmp_path) == [1, 4]


def test_one_that_is_kept_for_good_is_never_passed_over(tmp_path, snapshot, gate) -> None:
    with CheckpointWriter(tmp_path, print, keep_last=1, keep_every=2) as writer:
        writer.submit(snapshot(1, 0, 1))
        writer.submit(snapshot(2, 0, 2))
        threading.Timer(0.05, gate.set).start()
        writer.submit(snapshot(3, 0, 3))
        writer.finish()
        assert steps(tmp_path) == [2, 3]


def test_what_cannot_be_written_is_reported_and_the_last_good_one_stays(tmp_path, snapshot) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    messages: list[str] = []
    with CheckpointWriter(folder, messages.append, keep_last=1, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        writer.finish()
        folder.rename(tmp_path / "elsewhere")
        writer.submit(snapshot(2, 0, 2))
        with pytest.raises(OSError, match=r"the last checkpoint could not be written .* has gone"):
            writer.finish()
        (sentence,) = messages
        assert "checkpoint of step 2 could not be written (its folder has gone)" in sentence
        (tmp_path / "elsewhere").rename(folder)
        assert steps(folder) == [1]
        writer.submit(snapshot(3, 0, 3))
        writer.finish()
        assert steps(folder) == [3]


def test_a_run_that_fails_still_writes_what_it_had_handed_over(tmp_path, snapshot, gate) -> None:
    threading.Timer(0.05, gate.set).start()
    writer = CheckpointWriter(tmp_path, print, keep_last=1, keep_every=None)
    with pytest.raises(ZeroDivisionError):
        leave(writer, snapshot(1, 0, 1), ZeroDivisionError())
    assert steps(tmp_path) == [1]


def test_a_second_interrupt_does_not_wait(tmp_path, snapshot, gate) -> None:
    started = time.monotonic()
    writer = CheckpointWriter(tmp_path, print, keep_last=1, keep_every=None)
    with pytest.raises(KeyboardInterrupt):
        leave(writer, snapshot(1, 0, 1), KeyboardInterrupt())
    assert time.monotonic() - started < 5
    gate.set()
    writer.finish()


def test_a_bug_in_the_thread_reaches_the_run(tmp_path, snapshot, monkeypatch) -> None:
    def write(directory, snapshot):
        raise TypeError("a bug")

    monkeypatch.setattr(module, "write_checkpoint", write)
    with CheckpointWriter(tmp_path, print, keep_last=1, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        with pytest.raises(TypeError, match="a bug"):
            writer.finish()


def test_a_message_that_cannot_be_printed_does_not_leave_the_run_waiting(
    tmp_path, snapshot, monkeypatch
) -> None:
    def report(text):
        raise UnicodeEncodeError("ascii", text, 0, 1, "no such letter")

    def write(directory, snapshot):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_checkpoint", write)
    with CheckpointWriter(tmp_path, report, keep_last=1, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        deadline = time.monotonic() + 10
        while writer._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not writer._queue.unfinished_tasks
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
