"""What a run tells: ``metrics.jsonl``, TensorBoard, a progress bar."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

METRICS = "metrics.jsonl"


class Journal:
    """Writes on process 0 and does nothing elsewhere.

    Args:
        directory: The run directory.
        active: Whether this is process 0.
        steps: Optimiser steps of the whole run.
        start: Steps already taken; later lines of an interrupted run are dropped.
        images_per_step: Global batch size, for the rate.
    """

    def __init__(
        self, directory: Path, *, active: bool, steps: int, start: int, images_per_step: int
    ) -> None:
        self.active, self.images_per_step = active, images_per_step
        self.clock, self.clock_step = time.perf_counter(), start
        if not active:
            return
        self.path = directory / METRICS
        _drop_after(self.path, start)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=start)
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

    def advance(self) -> None:
        """One optimiser step is done."""
        if self.active:
            self.bar.update(1)

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
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, step)
        shown = {"images_per_second": "img/s"}
        parts = ("loss", "ssl", "gh", "images_per_second")
        self.bar.set_postfix(
            {shown.get(name, name): f"{values[name]:.4g}" for name in parts if name in values},
            refresh=False,
        )

    def event(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Log something that happens now and then, such as a refresh of the population."""
        if not self.active:
            return
        self._write({"kind": kind, "step": step, "epoch": epoch} | values)
        for name, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self.active:
            tqdm.write(text, file=sys.stderr)

    def _write(self, line: dict[str, Any]) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}
        self.file.write(json.dumps(rounded) + "\n")
        self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.active:
            self.bar.close()
            self.board.close()
            self.file.close()


def _drop_after(path: Path, start: int) -> None:
    """Take out the lines of what will happen again, and a line cut off by a kill."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            content = json.loads(line)
            # A refresh is written before the step that follows it, and again by a resumed run.
            last = start - 1 if content["kind"] == "refresh" else start
        except (json.JSONDecodeError, KeyError):
            continue
        if content["step"] <= last:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
