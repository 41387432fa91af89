"""The folder of a run's checkpoints: which are there, which is whole, which stay."""

import errno
import json
import shutil
from pathlib import Path

from sslgh.engine.checkpoint import PROGRESS, CheckpointError, Progress, read_progress
from sslgh.engine.manifest import MANIFEST, DamagedError, check_manifest

# What a broken progress.json raises when it is read; all of it means damaged.
_BROKEN = (OSError, ValueError, KeyError, TypeError, RecursionError)


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints under their final name, in the order of the run; damaged ones may be among them."""
    return sorted(directory.glob("step-*[0-9]"), key=_place)


def _place(path: Path) -> tuple[float, float, str]:
    """Epoch and step: the total may fall when a run goes on with another number of processes."""
    try:
        held = json.loads((path / PROGRESS).read_text())
        return float(held["epoch"]), float(held["step_in_epoch"]), path.name
    except _BROKEN:
        return float("inf"), 0.0, path.name  # looked at first, and found to be damaged


def tidy(directory: Path) -> None:
    """Put right what a run that was killed in the middle of a rename left behind; process 0 only."""
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
    """The latest checkpoint whose files are those that were written; process 0 only.

    Damaged ones are renamed to ``step-N.damaged``: kept for whoever wants to look, counted no more.

    Returns:
        The checkpoint, None where there never was one, and a sentence for each that is damaged.

    Raises:
        CheckpointError: If there are checkpoints and none is whole, or the last whole one is of
            another format.
    """
    said: list[str] = []
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
            said.append(f"{path} is damaged ({_reason(error)}) and was set aside")
            _mark_damaged(path)
            continue
        return path, said
    if found or list(directory.glob("step-*.damaged")):
        reason = said[0] if said else "all were set aside before"
        raise CheckpointError(
            f"no checkpoint in {directory} is whole ({reason}); delete that folder to begin anew, or restore one"
        )
    return None, said


def _refuse_other_format(path: Path) -> None:
    """A checkpoint from before there were manifests is of another format, not damaged."""
    if (path / MANIFEST).exists():
        return
    try:
        read_progress(path)
    except CheckpointError:
        raise
    except _BROKEN:
        return


def _is_damage(error: OSError) -> bool:
    """Whether a file is torn or lies on a bad sector; no permission or a lost mount may pass."""
    return isinstance(error, DamagedError | FileNotFoundError) or error.errno == errno.EIO


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _mark_damaged(path: Path) -> None:
    target = path.with_name(f"{path.name}.damaged")
    try:
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    except OSError:  # a directory that cannot be written to; the run will say so when it saves
        return


def drop_old_checkpoints(
    directory: Path, newest: Path, *, keep_last: int, keep_every: int | None
) -> None:
    """Delete all but the latest ``keep_last`` and those at the end of every ``keep_every``-th epoch.

    Args:
        directory: The folder of the checkpoints.
        newest: What was written last, which always stays. One whose place cannot be read counts as the
            oldest: it must not take the room of a whole one.
        keep_last: At least 1.
        keep_every: Epochs, or None.

    Raises:
        OSError: If one cannot be deleted.
    """
    others = [path for path in directory.glob("step-*[0-9]") if path != newest]
    others.sort(key=lambda path: (_place(path)[0] < float("inf"), _place(path)))
    for path in others[: max(len(others) - (keep_last - 1), 0)]:
        if not _stays(path, keep_every):
            # Under another name first: a kill in the middle of the deletion leaves no torn checkpoint.
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)
            shutil.rmtree(gone)


def _stays(path: Path, keep_every: int | None) -> bool:
    try:
        return is_kept(read_progress(path)[0], keep_every)
    except _BROKEN:
        return False


def is_kept(progress: Progress, keep_every: int | None) -> bool:
    """Whether a checkpoint is one that ``train.keep_every`` keeps for good.

    Examples:
        >>> [is_kept(Progress(epoch, 0, 0), 10) for epoch in (9, 10, 20)]
        [False, True, True]
    """
    return (
        keep_every is not None and progress.step_in_epoch == 0 and progress.epoch % keep_every == 0
    )
