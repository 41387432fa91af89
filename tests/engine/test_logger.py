import errno
import json
import os
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sslgh.engine import logger
from sslgh.engine.logger import JsonlWriter, MetricLogger, TensorBoardWriter


def test_lines_that_find_no_room_are_kept_and_written_later(tmp_path) -> None:
    path = tmp_path / "lines"
    path.symlink_to("/dev/full")
    file = JsonlWriter(path)
    assert file.write("first").errno == errno.ENOSPC
    path.unlink()
    assert file.write("second") is None
    assert path.read_text() == "first\nsecond\n"


def test_a_line_that_a_full_disk_has_cut_is_finished_when_there_is_room(tmp_path) -> None:
    class Narrow:
        """A file that takes four bytes, then nothing, then all; and its path."""

        def __init__(self) -> None:
            self.answers = iter([4, None])

        @contextmanager
        def open(self, mode: str, *, buffering: int):
            with (tmp_path / "lines").open(mode, buffering=buffering) as self.file:
                yield self

        def write(self, data: bytes) -> int:
            count = next(self.answers, len(data))
            if count is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[:count])

    file = JsonlWriter(Narrow())
    assert file.write("a long line") is not None
    assert file.write("another") is None
    assert (tmp_path / "lines").read_text() == "a long line\nanother\n"


def test_lines_that_wait_at_the_end_are_tried_once_more(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with journal(tmp_path) as log:
        log.log_event("health", 1, 0, {"knn": 0.5})
        path.unlink()
    assert json.loads(path.read_text())["knn"] == 0.5


def journal(directory: Path) -> MetricLogger:
    return MetricLogger(directory, active=True, steps=9, epochs=3, start=0, images_per_step=1)


def test_a_run_is_not_ended_by_a_log_that_cannot_be_written(tmp_path, capsys) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    with journal(tmp_path) as log:
        for step in range(1, 4):
            log.metrics(step, 0, {"loss": 1.0})
        log.log_event("refresh", 3, 0, {"groups": 2})
    said = capsys.readouterr().err
    assert said.count("metrics.jsonl cannot be written (No space left on device)") == 1
    assert said.count("tensorboard cannot be written") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_under_tensorboard_costs_its_scalars_and_no_line(
    tmp_path, capsys
) -> None:
    with journal(tmp_path) as log:
        log.board._writer.flush()
        worker = log.board._writer.file_writer.event_writer._async_writer

        def full(data) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        worker._writer.write = full
        log.metrics(1, 0, {"loss": 1.0})
        worker._worker.join(10)
        log.metrics(2, 0, {"loss": 1.0})
        log.metrics(3, 0, {"loss": 1.0})
        assert log.board.error.errno == errno.ENOSPC
    assert capsys.readouterr().err.count("tensorboard cannot be written") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_at_the_last_scalar_of_tensorboard_ends_no_run(tmp_path) -> None:
    with closing(TensorBoardWriter(tmp_path / "board", 0)) as board:
        board._writer.flush()
        worker = board._writer.file_writer.event_writer._async_writer

        def full(*data) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        worker._writer.write = worker._writer.flush = full
        board.write({"kind": "train", "step": 1, "loss": 1.0})
        worker._worker.join(10)


@pytest.mark.parametrize("torn", [b'{"kind": "train", "st', b"\xff\xfe\n", b"[1]\n"])
def test_a_torn_last_line_is_left_out_when_a_run_goes_on(tmp_path, torn) -> None:
    whole = json.dumps({"kind": "train", "step": 1, "epoch": 0})
    (tmp_path / "metrics.jsonl").write_bytes(whole.encode() + b"\n" + torn)
    with MetricLogger(tmp_path, active=True, steps=9, epochs=3, start=1, images_per_step=1) as log:
        log.log_event("health", 2, 0, {})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def scalars(directory: Path) -> dict[str, list[int]]:
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    return {tag: [one.step for one in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_shows_every_step_once_also_those_around_a_stop(tmp_path) -> None:
    with journal(tmp_path) as log:
        for step in (2, 4, 6):
            log.metrics(step, 0, {"loss": 1.0})
            log.log_event("refresh", step, 0, {"groups": 2})
    with MetricLogger(tmp_path, active=True, steps=9, epochs=3, start=4, images_per_step=1) as log:
        log.log_event("refresh", 4, 0, {"groups": 2})
        log.metrics(6, 0, {"loss": 1.0})
    shown = scalars(tmp_path)
    assert shown["train/loss"] == [2, 4, 6]
    assert shown["refresh/groups"] == [2, 4]


def test_the_bar_shows_the_epoch_and_the_ssl_loss_before_the_terms_of_gh(tmp_path) -> None:
    with journal(tmp_path) as log:
        log.running(1, 3)
        values = {"gh_share": 0.2, "loss": 3.0, "gh": 1.0, "ssl": 2.0, "embedding_norm": 1.0}
        log.metrics(4, 1, values)
        shown = str(log.bar)
        assert f"{tmp_path.name} epoch 2/3" in shown
        assert shown.index("ssl=2") < shown.index("gh=1") < shown.index("gh share=0.2")
        assert "loss=" not in shown
        log.metrics(5, 1, {"loss": 3.0, "logit": 3.0})  # of supervised training
        assert "loss=3" in str(log.bar)


@pytest.mark.parametrize(("start", "found"), [(0, "30 epochs: about 6"), (75, "5 more epochs")])
def test_the_length_of_a_run_is_printed_once_from_its_first_steps(
    tmp_path, capsys, monkeypatch, start, found
) -> None:
    clock = [0.0]
    monkeypatch.setattr(logger.time, "perf_counter", lambda: clock[0])
    with MetricLogger(
        tmp_path, active=True, steps=90, epochs=30, start=start, images_per_step=1
    ) as log:
        for seconds in (100.0, *[4.0] * 14):  # the first step starts workers
            clock[0] += seconds
            log.advance()
    lines = [line for line in capsys.readouterr().err.splitlines() if "epochs" in line]
    assert len(lines) == 1
    assert found in lines[0]
    assert lines[0].endswith(("about 6 min here", "about 60 s here"))  # 90 or 15 steps of 4 s


def test_the_length_of_a_short_run_is_not_printed(tmp_path, capsys) -> None:
    with journal(tmp_path) as log:
        for _ in range(9):
            log.advance()
    assert "epochs" not in capsys.readouterr().err
