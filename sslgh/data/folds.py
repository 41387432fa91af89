"""Folds of a run's images: files of positions below ``folds/``, each next to the run that is trained on them."""

from pathlib import Path

from sslgh.recipe.data import Data

FOLDS = "folds"


def fold_files(directory: Path) -> list[Path]:
    """The files ``1.txt``, ``2.txt`` and on of a run directory; the run on the images of ``1.txt`` is ``1/``."""
    return sorted((directory / FOLDS).glob("*.txt"), key=_number)


def fold_data(data: Data, file: Path) -> Data:
    """The data of a run with the training images of a fold's file."""
    return data.model_copy(update={"subset": file})


def _number(file: Path) -> int:
    return int(file.stem)
