"""What all blocks of a recipe share."""

import typing
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

MOST = 2**31 - 1
# Bytes; of most file systems, and of Linux.
LONGEST_NAME, LONGEST_PATH = 255, 4095

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=MOST)]


def user_path(path: Path) -> Path:
    """A path as a user writes it, with ~ and ~name for home folders.

    Raises:
        ValueError: If it can be no path of this machine.
    """
    if "\0" in str(path):
        raise ValueError(f"expected a path, got {str(path)!r} with a null character")
    if long := [part for part in path.parts if len(_bytes(part)) > LONGEST_NAME]:
        raise ValueError(f"expected names of at most {LONGEST_NAME} bytes, got {long[0][:20]}...")
    if len(_bytes(str(path))) > LONGEST_PATH:
        raise ValueError(
            f"expected a path of at most {LONGEST_PATH} bytes, got {str(path)[:20]}..."
        )
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"no home folder is known for {path.parts[0]}") from None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _not_empty(given: Any) -> Any:
    """Path makes "" the working folder: an unset variable of a script would write there."""
    if given == "":
        raise ValueError("expected a path, got ''; leave the key out, or write . for this folder")
    return given


def path_or_word(given: str) -> str:
    """A text that may be a path, as it was given.

    Raises:
        ValueError: If it is empty, or can be neither.
    """
    user_path(Path(_not_empty(given)))
    return given


UserPath = Annotated[Path, AfterValidator(user_path), BeforeValidator(_not_empty)]
PathOrWord = Annotated[str, AfterValidator(path_or_word)]


class ConfigModel(BaseModel):
    """A block of a recipe: closed to unknown keys, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read ``epochs: yes`` as one epoch."""
        assert info.field_name is not None
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in given) and not _takes_truth(
            cls.model_fields[info.field_name].annotation
        ):
            raise ValueError(f"expected no truth value, got {value!r}; put a word in quotes")
        return value


def _takes_truth(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_truth, typing.get_args(annotation)))
