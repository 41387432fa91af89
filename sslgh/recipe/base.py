"""Base class and common types of the blocks of a recipe."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from sslgh.recipe.errors import shown

MOST = 2**31 - 1
VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>\w+)\})", re.ASCII)
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of most file systems

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]


def user_path(given: Any) -> str:
    """A path as a user writes it, with ~, ~name and $NAME; ValueError if it can be none."""
    if not isinstance(given, str | Path):
        raise ValueError(f"expected a path, got {shown(given)}; put it in quotes")
    # Path takes "" for the working folder: an unset variable of a script would write there.
    if given == "":
        raise ValueError("expected a path, got ''; leave the key out, or write . for this folder")
    if "\0" in str(given):
        raise ValueError(f"expected a path, got {str(given)[:20]!r} with a null character")
    path = Path(_with_variables(str(given)))
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


def _with_variables(text: str) -> str:
    """The text with $NAME and ${NAME} from the environment; a path that exists so stays as it is."""
    if os.path.lexists(text):
        return text
    names = [match["plain"] or match["braced"] for match in VARIABLE.finditer(text)]
    # Taken for nothing, as a shell does, /data/$SET would be all that lies in /data.
    if unset := [name for name in names if not os.environ.get(name)]:
        raise ValueError(
            f"the environment variable {shown(unset[0])[1:-1]} in the path {shown(text)} is not set; set it, or write "
            "the path in full"
        )
    return VARIABLE.sub(lambda match: os.environ[match["plain"] or match["braced"]], text)


def _path_or_word(given: str) -> str:
    # Not the path that was made of it: it may be a word, or the name of a model.
    user_path(given)
    return _with_variables(given)


UserPath = Annotated[Path, BeforeValidator(user_path)]
PathOrWord = Annotated[str, AfterValidator(_path_or_word)]


class ConfigModel(BaseModel):
    """A block of a recipe: closed to unknown keys, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
