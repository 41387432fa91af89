"""A stop that was asked for: finish the step, save, leave."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

# SLURM announces the end of a job by the signal of its --signal option, SIGUSR1 by custom.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):  # noqa: N818 - not an error: the run goes on when started again
    """The run was stopped by a signal after saving."""


class StopRequest:
    """Remembers the first SIGTERM, SIGINT or SIGUSR1; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
