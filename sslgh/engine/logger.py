"""Logs of a run: ``metrics.jsonl``, TensorBoard, a progress bar and lines on stderr."""

import contextlib
import json
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sslgh.engine.run_dir import METRICS, write_status

# Bytes kept in memory while the disk is full; the oldest lines are dropped first.
MAX_PENDING = 8 * 2**20
# Seconds of training after which its length is predicted.
TIMED_SECONDS = 10.0
# Keys of a line that say where the run is.
POSITION = ("step", "epoch")
# Metrics on the progress bar, by their labels there; a plain loss only where no SSL loss is.
SHOWN = {"ssl": "ssl", "gh": "gh", "gh_share": "gh share", "images_per_second": "img/s"}


def print_stderr(text: str) -> None:
    """Print to stderr without tearing a progress bar; ignore a closed pipe or a full disk."""
    with contextlib.suppress(OSError):
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Format a length of time, to about 5 %.

    Examples:
        >>> duration(40), duration(29 * 60), duration(12_000), duration(200_000)
        ('40 s', '29 min', '3.3 h', '2.3 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 99 * 60:
        return f"{seconds / 60:.2g} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


class MetricLogger:
    """Logs on rank 0 and does nothing on the others.

    A failed log write never stops training: it is reported once and retried.

    Args:
        directory: The run directory.
        active: Whether this is rank 0.
        steps: Optimizer steps of the whole run.
        epochs: Epochs of the whole run.
        start: Steps already taken; later lines of an interrupted run are dropped.
        images_per_step: Global batch size, for the rate.
        within_epoch: Whether the epoch of the last step has still to be ended.
    """

    def __init__(
        self,
        directory: Path,
        *,
        active: bool,
        steps: int,
        epochs: int,
        start: int,
        images_per_step: int,
        within_epoch: bool = False,
    ) -> None:
        self.directory, self.active, self.images_per_step = directory, active, images_per_step
        self.epochs, self.steps, self.start = epochs, steps, start
        self.clock, self.clock_step = time.perf_counter(), start
        self._first_step_ended: float | None = None
        self._length_known = False
        self._warned: set[str] = set()
        self._open = ExitStack()
        if not active:
            return
        # A refresh is logged before the step that follows it, the health before the end of an epoch is saved.
        repeated = {"refresh", "health"} if within_epoch else {"refresh"}
        path = directory / METRICS
        kept = _drop_after(path, start, repeated) if path.is_file() else []
        self.file = JsonlWriter(path)
        self._open.callback(self.file.flush)
        board = TensorBoardWriter(directory / "tensorboard", start)
        self.board = self._open.enter_context(closing(board))
        for line in kept:
            self.board.write(line)
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc=directory.name,
            # A log file gets a line now and then instead of thousands of carriage returns.
            mininterval=0.3 if terminal else 20,
            dynamic_ncols=terminal,
        )
        self._open.enter_context(contextlib.suppress(OSError))
        self._open.callback(self.bar.close)

    def advance(self) -> None:
        """Move the bar by one optimizer step; print once how long the run takes."""
        if self.active:
            with contextlib.suppress(OSError):
                self.bar.update(1)
            if not self._length_known:
                self._predict_length()

    def _predict_length(self) -> None:
        """Print how long the epochs take, after `TIMED_SECONDS`; the first step, which starts workers, is not timed."""
        now, steps = time.perf_counter(), self.bar.n - self.start
        if self._first_step_ended is None:
            self._first_step_ended = now
        elif (passed := now - self._first_step_ended) > TIMED_SECONDS:
            self._length_known = True
            seconds = passed / (steps - 1) * (self.steps - self.start)
            share = 1 - self.start / self.steps
            epochs = f"{share * self.epochs:.3g}" + (" more" if self.start else "")
            self.info(f"{epochs} epochs: about {duration(seconds)} here")

    def running(self, epoch: int, step: int) -> None:
        """Write the position of the run into ``status.json``."""
        if not self.active:
            return
        name = f"{self.directory.name} epoch {epoch + 1}/{self.epochs}"
        self.bar.set_description(name, refresh=False)
        try:
            write_status(self.directory, "running", epoch=epoch, step=step)
            self._warned.discard("status.json")
        except OSError as error:
            self._warn_once("status.json", error)

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Log the numbers of a step; adds images/s since the last call."""
        if not self.active:
            return
        now = time.perf_counter()
        if step > self.clock_step:
            rate = (step - self.clock_step) * self.images_per_step / (now - self.clock)
            values = values | {"images_per_second": rate}
        self.clock, self.clock_step = now, step
        self.log_event("train", step, epoch, values)
        labels = SHOWN if "ssl" in values else {"loss": "loss"} | SHOWN
        self.bar.set_postfix(
            {label: f"{values[name]:.4g}" for name, label in labels.items() if name in values},
            refresh=False,
        )

    def log_event(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Log a line of its own kind, such as a refresh of the population."""
        if not self.active:
            return
        line = {"kind": kind, "step": step, "epoch": epoch} | values
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}
        error = self.file.write(json.dumps(rounded))
        if error is None:
            self._warned.discard(METRICS)
        else:
            self._warn_once(METRICS, error)
        self.board.write(line)
        if self.board.error is not None:
            self._warn_once("tensorboard", self.board.error)

    def info(self, text: str) -> None:
        """Print a line to stderr."""
        if self.active:
            print_stderr(text)

    def _warn_once(self, name: str, error: OSError) -> None:
        if name not in self._warned:
            self._warned.add(name)
            reason = error.strerror or str(error)
            self.info(f"{self.directory / name} cannot be written ({reason}); training continues")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _drop_after(path: Path, start: int, repeated: set[str]) -> list[dict[str, Any]]:
    """Drop the lines of later steps, which will be logged again, and a line that a kill cut off.

    Args:
        path: ``metrics.jsonl``.
        start: Steps already taken.
        repeated: Kinds of lines that a resumed run logs again at step ``start``.

    Returns:
        The kept lines of step ``start``: TensorBoard purges that step as a whole.
    """
    kept, last = [], []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line["step"] <= (start - 1 if line["kind"] in repeated else start):
                kept.append(text + "\n")
                last += [line] if line["step"] == start else []
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
    return last


class JsonlWriter:
    """Appends whole lines; a line that cannot be written is written before the next one.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._pending = path, b""

    def write(self, line: str) -> OSError | None:
        """Append a line; returns the error if it has to wait."""
        self._pending += line.encode() + b"\n"
        if len(self._pending) > MAX_PENDING:
            self._pending = self._pending[-MAX_PENDING:].partition(b"\n")[2]
        return self.flush()

    def flush(self) -> OSError | None:
        """Write what is pending; returns the error if it still has to wait."""
        try:
            # Opened anew: a lost mount comes back under another descriptor.
            with self.path.open("ab", buffering=0) as file:
                # A disk that fills up writes a part without an error.
                while self._pending:
                    self._pending = self._pending[file.write(self._pending) or 0 :]
        except OSError as error:
            return error
        return None


class TensorBoardWriter:
    """Scalars for TensorBoard; stops at the first write error.

    TensorBoard writes in a thread of its own. On a full disk that thread prints its traceback and ends, the
    next scalar gets its error, and training continues without TensorBoard.

    Args:
        directory: Folder of the event files.
        start: Steps already taken; what was logged of later steps is purged.

    Attributes:
        error: The error that stopped it, or None.
    """

    def __init__(self, directory: Path, start: int) -> None:
        self.error: OSError | None = None
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(str(directory), purge_step=start)
        except OSError as error:
            self.error = error

    def write(self, line: dict[str, Any]) -> None:
        """Log the numbers of a line of ``metrics.jsonl``."""
        try:
            for name, value in line.items():
                if self._writer and isinstance(value, int | float) and name not in POSITION:
                    self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])
        except OSError as error:
            self.error, self._writer = error, None

    def close(self) -> None:
        """Write what is pending, and close the files."""
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
