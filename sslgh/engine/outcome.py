"""How a command ends: an exit code, one sentence on stderr, and ``status.json``."""

import logging
import os
import sys
from collections.abc import Callable

from sslgh.engine.loop import NotFiniteError
from sslgh.engine.run_directory import State, check_directory, write_status
from sslgh.engine.signals import Stopped
from sslgh.recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75


def conclude(action: Callable[[], None], recipe: Recipe | None = None) -> int:
    """Run a command and say how it ended.

    The user's mistakes (ValueError, by the rules of the house) and a full disk give one sentence;
    anything else is a bug of ours and keeps its traceback.

    Args:
        action: The command.
        recipe: Whose run directory hears of it, unless it belongs to another run.

    Returns:
        The exit code: 0 done, 1 failed, 2 the input was wrong, 75 stopped after saving.
    """
    try:
        action()
    except ValueError as error:
        logger.debug("traceback of a user's error", exc_info=True)
        return _report(recipe, "failed", error, BAD_INPUT)
    except (NotFiniteError, OSError) as error:
        return _report(recipe, "failed", error, FAILED)
    except Stopped as error:
        return _report(recipe, "stopped", error, STOPPED)
    except BaseException as error:
        _record(recipe, "failed", f"{type(error).__name__}: {error}")
        raise
    return DONE


def _report(recipe: Recipe | None, state: State, error: BaseException, code: int) -> int:
    if is_main():
        print(f"sslgh: {error}", file=sys.stderr)
    _record(recipe, state, str(error))
    return code


def _record(recipe: Recipe | None, state: State, message: str) -> None:
    """Write the status of a run that is the recipe's own; another's is not touched."""
    if recipe is None or not is_main():
        return
    try:
        check_directory(recipe)
        write_status(recipe.directory, state, message)
    except (RecipeError, OSError):
        return


def is_main() -> bool:
    """Whether this process speaks for all."""
    # Of the launcher, since the world may be what went wrong.
    return os.environ.get("RANK", "0") == "0"
