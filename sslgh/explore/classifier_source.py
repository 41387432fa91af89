"""A classifier by the name of what has one: a folder of ``sslgh classify`` or a finetuned run."""

from pathlib import Path

from sslgh.data.image_set import DataError
from sslgh.explore.classifier_folder import classifier_of, is_classifier_folder, load_fitted
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.model import load_model
from sslgh.explore.photo_classifier import PhotoClassifier
from sslgh.explore.run_classifier import run_classifier
from sslgh.models.serialization import run_of
from sslgh.recipe.errors import printable


def load_photo_classifier(spec: str) -> tuple[LoadedModel, PhotoClassifier]:
    """Network and classifier of a folder of ``sslgh classify`` or of a finetuned run.

    Raises:
        ValueError: If there is none.
    """
    model = load_model(spec)
    if is_classifier_folder(spec):
        fitted, _ = load_fitted(Path(spec).expanduser())
        return model, classifier_of(fitted, spec)
    directory = run_of(spec)
    if model.classifier is None or directory is None:
        raise DataError(
            f"{printable(spec)} has no classifier; make one with sslgh classify FOLDER LABELS.csv --model "
            f"{printable(spec)} --out DIR, or name a finetuned run"
        )
    return model, run_classifier(model, directory)
