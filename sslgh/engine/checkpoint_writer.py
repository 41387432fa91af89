"""Writing checkpoints beside the training, which waits for no more than the copy."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from sslgh.engine.checkpoint import Snapshot, write_checkpoint
from sslgh.engine.checkpoint_manager import drop_old_checkpoints, is_kept


class CheckpointWriter:
    """One thread that writes snapshots, the newest first come.

    A snapshot that waits while another is written is replaced by the next one, unless it is to be kept
    for good: at most two copies of the run are in memory. What cannot be written is remembered as a
    sentence; training goes on and the checkpoints that are there stay.

    Args:
        directory: The folder of the checkpoints.
        keep_last: How many of the latest stay.
        keep_every: Epochs between those that stay for good; None: none do.
    """

    def __init__(self, directory: Path, *, keep_last: int, keep_every: int | None) -> None:
        self.directory, self.keep_last, self.keep_every = directory, keep_last, keep_every
        self._told: list[str] = []
        self._waiting: Snapshot | None = None
        self._busy = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        # A daemon: a second Ctrl-C ends the process at once, and a part of a checkpoint harms nothing.
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot) -> None:
        """Have a snapshot written, soon."""
        with self._changed:
            if self._waiting is not None and is_kept(self._waiting.progress, self.keep_every):
                self._changed.wait_for(lambda: self._waiting is None)
            self._waiting = snapshot
            self._changed.notify_all()

    def messages(self) -> list[str]:
        """What went wrong since the last question."""
        with self._changed:
            told, self._told = self._told, []
        return told

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: If the last snapshot could not be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._busy)
        if isinstance(self._error, OSError):
            raise OSError(
                f"the last checkpoint could not be written to {self.directory} ({_reason(self._error)}); those "
                "before it are as they were: make room, then run the same command to go on from the latest"
            )
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let a run that failed still write what it had handed over; a second Ctrl-C does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if kind is not KeyboardInterrupt:
            self._thread.join()  # which writes what waits first

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
                snapshot, self._waiting, self._busy = self._waiting, None, True
                self._changed.notify_all()
            error: BaseException | None = None
            try:
                told = self._write(snapshot)
            except (
                BaseException
            ) as caught:  # what is no OSError is a bug of ours: `finish` raises it
                error = caught
                told = [_unwritten(snapshot, error)]
            with self._changed:
                self._error, self._busy = error, False
                self._told += told
                self._changed.notify_all()

    def _write(self, snapshot: Snapshot) -> list[str]:
        written = write_checkpoint(self.directory, snapshot)
        try:
            drop_old_checkpoints(
                self.directory, written, keep_last=self.keep_last, keep_every=self.keep_every
            )
        except OSError as error:
            return [f"an old checkpoint could not be deleted ({_reason(error)})"]
        return []


def _unwritten(snapshot: Snapshot, error: BaseException) -> str:
    return (
        f"the checkpoint of step {snapshot.progress.global_step} could not be written ({_reason(error)}); training goes "
        "on, the checkpoints before it are as they were"
    )


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
