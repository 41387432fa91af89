"""What a run tells: ``metrics.jsonl``, TensorBoard, a progress bar."""

import contextlib
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from sslgh.engine.jsonl_writer import JsonlWriter
from sslgh.engine.print_stderr import print_stderr
from sslgh.engine.run_dir import write_status
from sslgh.engine.tensorboard_writer import TensorBoardWriter

METRICS = "metrics.jsonl"


class MetricLogger:
    """Writes on process 0 and does nothing elsewhere.

    A run does not end because it cannot be told: what cannot be written is said, once until it can be
    again, and the lines are kept for when the disk has room.

    Args:
        directory: The run directory.
        active: Whether this is process 0.
        steps: Optimizer steps of the whole run.
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
        start: int,
        images_per_step: int,
        within_epoch: bool = False,
    ) -> None:
        self.directory, self.active, self.images_per_step = directory, active, images_per_step
        self.clock, self.clock_step = time.perf_counter(), start
        self._said: set[str] = set()
        self._open = ExitStack()
        if not active:
            return
        # A refresh is told before the step that follows it, the health before the end of an epoch is saved.
        shown = _drop_after(
            directory / METRICS, start, {"refresh", "health"} if within_epoch else {"refresh"}
        )
        self.file = self._open.enter_context(JsonlWriter(directory / METRICS))
        self.board = self._open.enter_context(TensorBoardWriter(directory / "tensorboard", start))
        for line in shown:
            self._show(line)
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
        self._open.callback(self._close_bar)

    def advance(self) -> None:
        """One optimizer step is done."""
        if self.active:
            with contextlib.suppress(OSError):
                self.bar.update(1)

    def running(self, epoch: int, step: int) -> None:
        """Write into ``status.json`` where the run stands."""
        if not self.active:
            return
        try:
            write_status(self.directory, "running", epoch=epoch, step=step)
            self._clear_warning("status.json")
        except OSError as error:
            self._warn_once("status.json", error)

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Log numbers of a step; adds images/s since the last call."""
        if not self.active:
            return
        now = time.perf_counter()
        if step > self.clock_step:
            rate = (step - self.clock_step) * self.images_per_step / (now - self.clock)
            values = values | {"images_per_second": rate}
        self.clock, self.clock_step = now, step
        self._write({"kind": "train", "step": step, "epoch": epoch} | values)
        shown = {"images_per_second": "img/s"}
        parts = ("loss", "ssl", "gh", "images_per_second")
        self.bar.set_postfix(
            {shown.get(name, name): f"{values[name]:.4g}" for name in parts if name in values},
            refresh=False,
        )

    def log_event(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Log something that happens now and then, such as a refresh of the population."""
        if self.active:
            self._write({"kind": kind, "step": step, "epoch": epoch} | values)

    def info(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self.active:
            print_stderr(text)

    def _write(self, line: dict[str, Any]) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}
        fault = self.file.write(json.dumps(rounded))
        if fault is None:
            self._clear_warning(METRICS)
        else:
            self._warn_once(METRICS, fault)
        self._show(line)
        if self.board.fault is not None:
            self._warn_once("tensorboard", self.board.fault)

    def _show(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                self.board.scalar(f"{line['kind']}/{name}", value, line["step"])

    def _warn_once(self, name: str, error: OSError) -> None:
        if name not in self._said:
            self._said.add(name)
            reason = error.strerror or str(error)
            self.info(
                f"{self.directory / name} cannot be written ({reason}); training goes on without"
            )

    def _close_bar(self) -> None:
        with contextlib.suppress(OSError):
            self.bar.close()

    def _clear_warning(self, name: str) -> None:
        self._said.discard(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()


def _drop_after(path: Path, start: int, again: set[str]) -> list[dict[str, Any]]:
    """Take out the lines of what will happen again, and a line cut off by a kill.

    Args:
        path: Of the file.
        start: Steps already taken.
        again: Kinds of lines that a resumed run writes again at that step.

    Returns:
        The lines of step ``start`` that stay: TensorBoard forgets that step whole.
    """
    if not path.is_file():
        return []
    kept, shown = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
            last = start - 1 if content["kind"] in again else start
            if content["step"] <= last:
                kept.append(line + "\n")
                shown += [content] if content["step"] == start else []
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
    return shown
