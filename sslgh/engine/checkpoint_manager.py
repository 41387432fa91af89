"""The folder of a run's checkpoints, and the thread that writes them."""

import contextlib
import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import Self

from sslgh.engine.checkpoint import (
    MANIFEST,
    PROGRESS,
    CheckpointError,
    DamagedError,
    Progress,
    Snapshot,
    check_manifest,
    read_progress,
    write_checkpoint,
)

# Errors of reading a damaged progress.json.
_BROKEN = (OSError, ValueError, KeyError, TypeError, RecursionError)
NOT_WRITTEN = (
    "the last checkpoint could not be written to {} ({}); those before it are as they were: make room, then "
    "run the same command to resume from the latest"
)


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in the order of the run; damaged ones may be among them."""
    return sorted(directory.glob("step-*[0-9]"), key=_sort_key)


def _sort_key(path: Path) -> tuple[float, float, str]:
    """Epoch and step: the global step may fall when a run is resumed with another number of processes."""
    try:
        held = json.loads((path / PROGRESS).read_text())
        return float(held["epoch"]), float(held["step_in_epoch"]), path.name
    except _BROKEN:
        return float("inf"), 0.0, path.name  # checked first, and found to be damaged


def clean_up(directory: Path) -> None:
    """Finish the renames and deletions of a killed run; rank 0 only."""
    for old in directory.glob(".step-*.old"):
        target = directory / old.name[1 : -len(".old")]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for ending in ("tmp", "gone"):
        for rest in directory.glob(f".step-*.{ending}"):
            shutil.rmtree(rest, ignore_errors=True)


def last_whole_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """The latest checkpoint whose files match its manifest; rank 0 only.

    Damaged ones are renamed to ``step-N.damaged``: kept for inspection, but not counted.

    Returns:
        The checkpoint, None if there never was one, and a message per damaged one.

    Raises:
        CheckpointError: If there are checkpoints and none is whole, or the last whole one has
            another format.
    """
    messages: list[str] = []
    found = list_checkpoints(directory)
    for path in reversed(found):
        try:
            check_manifest(path)
            read_progress(path)
        except CheckpointError:
            raise
        except _BROKEN as error:
            if isinstance(error, OSError) and not _is_damage(error):
                raise
            _refuse_other_format(path)
            messages.append(f"{path} is damaged ({_reason(error)}) and was set aside")
            _mark_damaged(path)
            continue
        return path, messages
    if found or list(directory.glob("step-*.damaged")):
        reason = messages[0] if messages else "all were set aside before"
        raise CheckpointError(
            f"no checkpoint in {directory} is whole ({reason}); restore one, or choose another run_dir to start over"
        )
    return None, messages


def _refuse_other_format(path: Path) -> None:
    """Raise for a checkpoint without manifest: it has an older format, and is not damaged."""
    if (path / MANIFEST).exists():
        return
    try:
        read_progress(path)
    except CheckpointError:
        raise
    except _BROKEN:
        return


def _is_damage(error: OSError) -> bool:
    """Whether a file is torn or on a bad sector; missing rights or a lost mount may be temporary."""
    return isinstance(error, DamagedError | FileNotFoundError) or error.errno == errno.EIO


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _mark_damaged(path: Path) -> None:
    target = path.with_name(f"{path.name}.damaged")
    try:
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    except OSError:  # a read-only directory; reported when the run saves
        return


def drop_old(directory: Path, newest: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Delete all but ``newest``, the latest ``keep_last`` and those of every ``keep_every``-th epoch.

    One whose progress cannot be read counts as the oldest: it must not take the place of a whole one.
    """
    others = [path for path in directory.glob("step-*[0-9]") if path != newest]
    others.sort(key=lambda path: (_sort_key(path)[0] < float("inf"), _sort_key(path)))
    for path in others[: max(len(others) - (keep_last - 1), 0)]:
        if not _is_kept_at(path, keep_every):
            # Renamed first: a kill in the middle of the deletion leaves no torn checkpoint.
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)
            shutil.rmtree(gone)


def _is_kept_at(path: Path, keep_every: int | None) -> bool:
    try:
        return is_kept(read_progress(path)[0], keep_every)
    except _BROKEN:
        return False


def is_kept(progress: Progress, keep_every: int | None) -> bool:
    """Whether ``train.keep_every`` keeps a checkpoint for good.

    Examples:
        >>> [is_kept(Progress(epoch, 0, 0), 10) for epoch in (9, 10, 20)]
        [False, True, True]
    """
    return (
        keep_every is not None and progress.step_in_epoch == 0 and progress.epoch % keep_every == 0
    )


class CheckpointWriter:
    """A background thread that writes the most recent snapshot; training blocks only for the copy to the CPU.

    A snapshot that waits while another is written is replaced by the next one, unless it is to be kept
    for good: at most two copies of the run are in memory. A write error is reported; training
    continues, and earlier checkpoints stay.

    Args:
        directory: Folder of the checkpoints.
        report: Function that prints a message.
        keep_last: Number of the latest checkpoints to keep.
        keep_every: Epochs between checkpoints that are kept for good, or None.
        active: Whether this is rank 0; the writers of the others do nothing.
    """

    def __init__(
        self,
        directory: Path,
        report: Callable[[str], None],
        *,
        keep_last: int,
        keep_every: int | None,
        active: bool = True,
    ) -> None:
        self.directory, self.report, self.active = directory, report, active
        self.keep_last, self.keep_every = keep_last, keep_every
        self._error: BaseException | None = None
        self._queue: Queue[Snapshot | None] = Queue(maxsize=1)
        # A daemon: a second Ctrl-C ends the process at once, and a partial checkpoint is harmless.
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        if active:
            self._thread.start()

    def submit(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot to be written."""
        if not self.active:
            return
        with contextlib.suppress(Empty):
            waiting = self._queue.get_nowait()
            if waiting is not None and is_kept(waiting.progress, self.keep_every):
                self._queue.put(waiting)
            self._queue.task_done()
        self._queue.put(snapshot)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: If the last snapshot could not be written.
        """
        self._queue.join()
        if isinstance(self._error, OSError):
            raise OSError(NOT_WRITTEN.format(self.directory, _cause(self._error)))
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the snapshot that waits, also after an error; a second Ctrl-C does not wait."""
        if self.active and kind is not KeyboardInterrupt:
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (snapshot := self._queue.get()) is not None:
            self._error = None
            try:
                self._drop_old(write_checkpoint(self.directory, snapshot))
            except BaseException as error:  # other than OSError: a bug, which `finish` raises
                self._error = error
                self._report_error(snapshot.progress.global_step, error)
            self._queue.task_done()

    def _report_error(self, step: int, error: BaseException) -> None:
        kept = "training continues, earlier checkpoints are intact"
        with contextlib.suppress(Exception):  # a thread that ends would leave the run waiting
            self.report(
                f"the checkpoint of step {step} could not be written ({_cause(error)}); {kept}"
            )

    def _drop_old(self, newest: Path) -> None:
        try:
            keep_last, keep_every = self.keep_last, self.keep_every
            drop_old(self.directory, newest, keep_last=keep_last, keep_every=keep_every)
        except OSError as error:
            self.report(f"an old checkpoint could not be deleted ({_cause(error)})")


def _cause(error: BaseException) -> str:
    """The operating system's words without its number and path."""
    return getattr(error, "strerror", None) or _reason(error)
