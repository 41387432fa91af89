"""What all blocks of a recipe share."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    """A block of a recipe: closed to unknown keys, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
