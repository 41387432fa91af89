"""Folds of a run's images: the names that each holds out, and the runs that are trained on the others."""

import json
from collections.abc import Sequence
from pathlib import Path

from sslgh.recipe.data import Data

FOLDS, HELD_OUT = "folds", "held_out.json"


def write_folds(directory: Path, folds: Sequence[Sequence[str]]) -> None:
    """Keep the names of the images of each fold in a run directory; atomic."""
    folder = directory / FOLDS
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{HELD_OUT}.tmp"
    temporary.write_text(json.dumps(folds, indent=0) + "\n", encoding="utf-8")
    temporary.replace(folder / HELD_OUT)


def read_folds(directory: Path) -> dict[Path, frozenset[str]]:
    """By directory of a fold's run, the names of the images that it is not trained on; empty without folds."""
    file = directory / FOLDS / HELD_OUT
    if not file.is_file():
        return {}
    folds = json.loads(file.read_text(encoding="utf-8"))
    return {directory / FOLDS / str(i): frozenset(names) for i, names in enumerate(folds, 1)}


def fold_data(data: Data, network: Path) -> Data:
    """The data of a fold's run: its training images are those at positions in a file."""
    return data.model_copy(update={"subset": network.with_suffix(".txt")})
