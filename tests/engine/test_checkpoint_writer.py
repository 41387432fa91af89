import threading
import time

import pytest

import sslgh.engine.checkpoint_writer as module
from sslgh.engine.checkpoint_manager import list_checkpoints
from sslgh.engine.checkpoint_writer import CheckpointWriter


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
    with CheckpointWriter(tmp_path, keep_last=9, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        while writer._waiting is not None:
            time.sleep(0.001)
        for epoch in (2, 3, 4):  # while the first is being written
            writer.submit(snapshot(epoch, 0, epoch))
        assert steps(tmp_path) == []
        gate.set()
        writer.finish()
        assert steps(tmp_path) == [1, 4]


def test_one_that_is_kept_for_good_is_never_passed_over(tmp_path, snapshot, gate) -> None:
    with CheckpointWriter(tmp_path, keep_last=1, keep_every=2) as writer:
        writer.submit(snapshot(1, 0, 1))
        writer.submit(snapshot(2, 0, 2))
        threading.Timer(0.05, gate.set).start()
        writer.submit(snapshot(3, 0, 3))
        writer.finish()
        assert steps(tmp_path) == [2, 3]


def test_what_cannot_be_written_is_said_and_the_last_good_one_stays(tmp_path, snapshot) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with CheckpointWriter(folder, keep_last=1, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        writer.finish()
        folder.rename(tmp_path / "elsewhere")
        writer.submit(snapshot(2, 0, 2))
        with pytest.raises(OSError, match=r"the last checkpoint could not be written .* has gone"):
            writer.finish()
        (sentence,) = writer.messages()
        assert "checkpoint of step 2 could not be written (its folder has gone)" in sentence
        assert writer.messages() == []
        (tmp_path / "elsewhere").rename(folder)
        assert steps(folder) == [1]
        writer.submit(snapshot(3, 0, 3))
        writer.finish()
        assert steps(folder) == [3]


def test_a_run_that_fails_still_writes_what_it_had_handed_over(tmp_path, snapshot, gate) -> None:
    threading.Timer(0.05, gate.set).start()
    writer = CheckpointWriter(tmp_path, keep_last=1, keep_every=None)
    with pytest.raises(ZeroDivisionError):
        leave(writer, snapshot(1, 0, 1), ZeroDivisionError())
    assert steps(tmp_path) == [1]


def test_a_second_interrupt_does_not_wait(tmp_path, snapshot, gate) -> None:
    started = time.monotonic()
    writer = CheckpointWriter(tmp_path, keep_last=1, keep_every=None)
    with pytest.raises(KeyboardInterrupt):
        leave(writer, snapshot(1, 0, 1), KeyboardInterrupt())
    assert time.monotonic() - started < 5
    gate.set()
    writer._thread.join(10)


def test_a_bug_in_the_thread_reaches_the_run(tmp_path, snapshot, monkeypatch) -> None:
    def write(directory, snapshot):
        raise TypeError("a bug")

    monkeypatch.setattr(module, "write_checkpoint", write)
    with CheckpointWriter(tmp_path, keep_last=1, keep_every=None) as writer:
        writer.submit(snapshot(1, 0, 1))
        with pytest.raises(TypeError, match="a bug"):
            writer.finish()
