"""A classifier by the name of what has one: a folder of ``sslgh classify`` or a finetuned run."""

import os
from pathlib import Path

from sslgh.data.image_set import DataError
from sslgh.explore.classifier_folder import classifier_of, is_classifier_folder, load_fitted
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.model import load_model
from sslgh.explore.photo_classifier import PhotoClassifier
from sslgh.explore.run_classifier import run_classifier
from sslgh.models.serialization import run_of
from sslgh.recipe.errors import located, printable


def load_photo_classifier(spec: str) -> tuple[LoadedModel, PhotoClassifier]:
    """Network and classifier of a folder of ``sslgh classify`` or of a finetuned run.

    Raises:
        ValueError: If there is none.
    """
    directory, folder = run_of(spec), Path(spec).expanduser()
    if is_classifier_folder(spec):
        model, (fitted, _) = load_model(spec), load_fitted(folder)
        return model, classifier_of(fitted, spec)
    if directory is None and _is_plain_folder(folder):
        raise DataError(
            f"{located(spec)} is neither a folder of sslgh classify nor a finetuned run; make one with sslgh classify "
            "FOLDER LABELS.csv --out DIR, and name it before the new photos"
        )
    model = load_model(spec)
    if model.classifier is None or directory is None:
        raise DataError(
            f"{printable(spec)} has no classifier; make one with sslgh classify FOLDER LABELS.csv --model "
            f"{printable(spec)} --out DIR, or name a finetuned run"
        )
    return model, run_classifier(model, directory)


def _is_plain_folder(path: Path) -> bool:
    """Whether a path is a folder of photos or results, not a run that is still in training."""
    # Path's own methods raise where they must not look.
    return os.path.isdir(path) and not os.path.exists(path / "recipe.yaml")  # noqa: PTH110, PTH112
