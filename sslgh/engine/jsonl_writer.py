"""A file of lines that outlives a full disk."""

import contextlib
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

# What is kept for later where nothing can be written; the oldest lines go first.
MOST_PENDING = 8 * 2**20


class JsonlWriter:
    """Appends whole lines; what cannot be written now is written before the next line.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = b""
        self._file: FileIO | None = None

    def write(self, line: str) -> OSError | None:
        """Append a line.

        Returns:
            Why it could not be written and waits, or None.
        """
        self._pending += line.encode() + b"\n"
        if len(self._pending) > MOST_PENDING:
            self._pending = self._pending[-MOST_PENDING:].partition(b"\n")[2]
        return self._flush()

    def _flush(self) -> OSError | None:
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
            # A disk that fills takes a part of what it is given, without an error.
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]
        except OSError as error:
            self._close()  # what it stands for may be gone: a lost mount comes back under a new one
            return error
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
