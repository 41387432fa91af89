"""How a command ends: an exit code, one sentence on stderr, and ``status.json``."""

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch.distributed import DistError

from sslgh.engine.logger import print_stderr
from sslgh.engine.run_dir import (
    OtherRunError,
    State,
    check_directory,
    read_status,
    write_status,
)
from sslgh.recipe import Recipe, RecipeError
from sslgh.recipe.errors import printable

logger = logging.getLogger(__name__)

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75
# Seconds that other ranks wait before they print: where rank 0 failed for the same reason and has printed it,
# the launcher ends this process meanwhile.
GRACE_SECONDS = 3
INTERRUPTED = "interrupted; run the same command to resume from the last checkpoint"


class NotFiniteError(RuntimeError):
    """A number became NaN or infinite; it is in no checkpoint."""


class Stopped(Exception):  # noqa: N818 - not an error: the run resumes when started again
    """The run was stopped by a signal after saving."""


def run_command(action: Callable[[], None], recipe: Recipe | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 failed, 2 the input was wrong, 75 stopped after saving.

    A failure goes into the status.json of ``recipe``, unless the directory belongs to another run.
    """
    begun = datetime.now(UTC).replace(microsecond=0)
    try:
        action()
    except BaseException as error:
        if (code := _exit_code(error, recipe, begun)) is None:
            raise
        return code
    return DONE


def _exit_code(error: BaseException, recipe: Recipe | None, begun: datetime) -> int | None:
    """Report an error; None for a bug, which keeps its traceback.

    Mistakes of the user (ValueError) and a full disk give one sentence.
    """
    state: State
    owner, state, code, text = recipe, "failed", FAILED, str(error)
    if isinstance(error, Stopped):
        state, code = "stopped", STOPPED
    elif isinstance(error, KeyboardInterrupt):
        text = INTERRUPTED
    elif _out_of_memory(error):
        code, text = BAD_INPUT, _smaller_batch(recipe)
    elif isinstance(error, ValueError):
        logger.debug("traceback of a user's error", exc_info=True)
        # If another run's directory is asked for, the status is that of its run.
        code, owner = BAD_INPUT, None if isinstance(error, OtherRunError) else recipe
    elif _peer_lost(error):
        logger.debug("traceback of a failed collective", exc_info=True)
        text = "another process of the run ended; its message is the cause"
    elif not isinstance(error, NotFiniteError | OSError) or (
        isinstance(error, BrokenPipeError) and recipe is None
    ):  # a bug, or a closed pipe (``| head``), which the command line handles
        _record(recipe, "failed", f"{type(error).__name__}: {error}", begun)
        return None
    return _report(owner, state, text, code, begun)


def _out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python found no room for something on a device or in memory."""
    of_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or of_cpu


def _smaller_batch(recipe: Recipe | None) -> str:
    """Sentence about a lack of memory, with the next smaller batch if it came in training."""
    if recipe is None or read_status(recipe.directory).get("state") == "done":
        return "out of memory; end other programs, or choose a smaller backbone or data.size"
    batch, parts = recipe.train.batch_size, recipe.train.accumulation
    smaller = 2 ** (max(batch // parts - 1, 0).bit_length() - 1) * parts
    remedy = f"set train.batch_size={int(smaller)}"
    if smaller < max(2, parts):
        remedy = "choose a smaller model.backbone, model.width or data.size"
    return f"train.batch_size {batch} needs more memory than is free; {remedy}"


def _peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone."""
    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    return isinstance(error, DistError) or of_gloo


def _report(recipe: Recipe | None, state: State, message: str, code: int, begun: datetime) -> int:
    message = printable(message)
    _record(recipe, state, message, begun)
    if is_main():
        print_stderr(f"sslgh: {message}")
    elif code != STOPPED:
        time.sleep(GRACE_SECONDS)
        print_stderr(f"sslgh (process {os.environ['RANK']}): {message}")
    return code


def _record(recipe: Recipe | None, state: State, message: str, begun: datetime) -> None:
    """Update status.json if the directory holds this recipe's run.

    The first cause stays: the failure of one rank makes the others fail.
    """
    if recipe is None or (state == "stopped" and not is_main()):
        return
    try:
        check_directory(recipe)
        # A probe that fails, or a start with other settings, leaves a finished training done.
        done = read_status(recipe.directory).get("state") == "done"
        if not done and not _failed_since(recipe, begun):
            write_status(recipe.directory, state, message)
    except (RecipeError, OSError):
        return


def _failed_since(recipe: Recipe, begun: datetime) -> bool:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    status = read_status(recipe.directory)
    if not several or status.get("state") != "failed":
        return False
    try:
        return datetime.fromisoformat(status["time"]) >= begun
    except (KeyError, ValueError, TypeError):
        return False


def is_main() -> bool:
    """Whether this is rank 0, by the launcher's variable: the process group may be what failed."""
    return os.environ.get("RANK", "0") == "0"
