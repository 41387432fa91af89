"""How a command ends: an exit code, one sentence on stderr, and ``status.json``."""

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from torch.distributed import DistError

from sslgh.engine.finite import NotFiniteError
from sslgh.engine.launch import Stopped
from sslgh.engine.logger import print_stderr
from sslgh.engine.run_dir import BusyError, State, check_directory, read_status, write_status
from sslgh.recipe import Recipe, RecipeError
from sslgh.recipe.printable import printable

logger = logging.getLogger(__name__)

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75
# Seconds that other ranks wait before they print: where rank 0 failed for the same reason and has printed it,
# the launcher ends this process meanwhile.
GRACE_SECONDS = 3
INTERRUPTED = "interrupted; run the same command to go on from the last checkpoint"


def run_command(action: Callable[[], None], recipe: Recipe | None = None) -> int:
    """Run a command and report how it ended.

    Mistakes of the user (ValueError) and a full disk give one sentence; anything else is a bug and keeps its
    traceback.

    Args:
        action: The command.
        recipe: Run whose status.json is updated, unless the directory belongs to another run.

    Returns:
        The exit code: 0 done, 1 failed, 2 the input was wrong, 75 stopped after saving.
    """
    begun = datetime.now(UTC).replace(microsecond=0)
    try:
        action()
    except Stopped as error:
        return _report(recipe, "stopped", str(error), STOPPED, begun)
    except KeyboardInterrupt:
        return _report(recipe, "failed", INTERRUPTED, FAILED, begun)
    except ValueError as error:
        logger.debug("traceback of a user's error", exc_info=True)
        # If another process trains there, the status is that of its run.
        return _report(
            None if isinstance(error, BusyError) else recipe, "failed", str(error), BAD_INPUT, begun
        )
    except (NotFiniteError, OSError) as error:
        if isinstance(error, BrokenPipeError) and recipe is None:
            raise  # a closed pipe (``| head``) is handled by the command line
        return _report(recipe, "failed", str(error), FAILED, begun)
    except BaseException as error:
        if _peer_lost(error):
            logger.debug("traceback of a failed collective", exc_info=True)
            sentence = "another process of the run ended; its message is the cause"
            return _report(recipe, "failed", sentence, FAILED, begun)
        _record(recipe, "failed", f"{type(error).__name__}: {error}", begun)
        raise
    return DONE


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
