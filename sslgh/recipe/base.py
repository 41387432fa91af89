"""Base class and common types of the blocks of a recipe."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

MOST = 2**31 - 1
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of most file systems

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]


def user_path(given: Any) -> str:
    """A path as a user writes it, with ~ and ~name for home folders; ValueError if it can be none."""
    if not isinstance(given, str | Path):
        raise ValueError(f"expected a path, got {given!r}; put it in quotes")
    # Path takes "" for the working folder: an unset variable of a script would write there.
    if given == "":
        raise ValueError("expected a path, got ''; leave the key out, or write . for this folder")
    if "\0" in str(given):
        raise ValueError(f"expected a path, got {str(given)[:20]!r} with a null character")
    path = Path(given)
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(
            f"expected a path of at most {LONGEST_PATH} bytes, got {str(path)[:20]}..."
        )
    if long := [name for name in path.parts if len(os.fsencode(name)) > LONGEST_NAME]:
        raise ValueError(f"expected names of at most {LONGEST_NAME} bytes, got {long[0][:20]}...")
    try:
        return str(path.expanduser())
    except RuntimeError:
        raise ValueError(f"no home folder is known for {path.parts[0]}") from None


def _path_or_word(given: str) -> str:
    user_path(given)
    return given


UserPath = Annotated[Path, BeforeValidator(user_path)]
PathOrWord = Annotated[str, AfterValidator(_path_or_word)]


class ConfigModel(BaseModel):
    """A block of a recipe: closed to unknown keys, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
