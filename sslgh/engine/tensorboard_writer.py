"""TensorBoard's copy of the numbers, which a run can do without."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter


class TensorBoardWriter:
    """Scalars for TensorBoard; ends at the first thing that cannot be written.

    Args:
        directory: The folder of its files.
        start: Steps already taken; what was shown of later ones is taken back.

    Attributes:
        fault: Why it ended, or None.
    """

    def __init__(self, directory: Path, start: int) -> None:
        self.fault: OSError | None = None
        self._hook = threading.excepthook
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(str(directory), purge_step=start)
        except OSError as error:
            self.fault = error

    def scalar(self, name: str, value: float, step: int) -> None:
        """Show a number."""
        if self._writer is None:
            return
        try:
            self._writer.add_scalar(name, value, step)
        except OSError as error:  # of its thread, told at the next number
            self.fault, self._writer = error, None

    def __enter__(self) -> Self:
        self._hook, threading.excepthook = threading.excepthook, self._leave_out
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as caught:
            self.fault = self.fault or caught
        threading.excepthook = self._hook

    def _leave_out(self, told: threading.ExceptHookArgs) -> None:
        """Its thread would print a traceback where the journal has a sentence."""
        ours = type(told.thread).__name__ == "_AsyncWriterThread"
        if ours and issubclass(told.exc_type, OSError):
            return
        self._hook(told)
