"""A model for photos by its name."""

from pathlib import Path

from sslgh.explore.bare_weights import file_model, is_weights_file
from sslgh.explore.classifier_folder import is_classifier_folder
from sslgh.explore.classifier_model import folder_model
from sslgh.explore.default_model import default_model
from sslgh.explore.loaded_model import LoadedModel, library_model, run_model
from sslgh.models.pretrained import LIBRARIES, is_library
from sslgh.models.serialization import run_of
from sslgh.recipe.errors import located

__all__ = ["LoadedModel", "load_model"]


def load_model(spec: str | None) -> LoadedModel:
    """A frozen backbone with its own preprocessing.

    Args:
        spec: A run directory, a folder of ``sslgh classify``, ``timm:NAME``, ``timm:NAME@SIDE``, ``torchvision:NAME``,
            ``hf-hub:NAME``, ``local-dir:FOLDER``, ``package:efficientnet-lite0``, a file of weights, FILE@BACKBONE; or
            None for `default_model`.

    Raises:
        ValueError: If nothing of that name can be loaded; one sentence.
    """
    if spec is None:
        return default_model()
    if is_library(spec):
        return library_model(spec)
    if is_classifier_folder(spec):
        return folder_model(spec, load_model)
    if (run := run_of(spec)) is not None:
        return run_model(spec, run)
    if Path(spec).expanduser().is_dir():
        return run_model(spec, Path(spec).expanduser())  # refused: says what the folder lacks
    if is_weights_file(spec):
        return file_model(spec)
    names = ", ".join(f"{prefix}NAME" for prefix in LIBRARIES)
    raise ValueError(f"{located(spec)} is not a run directory, {names} or a file of weights")
