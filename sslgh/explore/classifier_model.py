"""A model for photos from a folder of ``sslgh classify``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from sslgh.data.image_set import DataError
from sslgh.explore.classifier_folder import CARD, Fitted, classifier_of, load_fitted
from sslgh.explore.loaded_model import LoadedModel
from sslgh.recipe.errors import located, printable

Load = Callable[[str | None], LoadedModel]


def folder_model(spec: str, load: Load) -> LoadedModel:
    """The network that a classifier folder was made with, and its head: softmax gives the calibrated probabilities.

    Raises:
        ValueError: If the folder or its network cannot be loaded, or the network has changed.
    """
    folder = Path(spec).expanduser()
    fitted, card = load_fitted(folder)
    try:
        model = load(card["model"])
    except ValueError as error:
        raise DataError(
            f"the network of {located(folder / CARD)} cannot be loaded: {error}; bring it back there, or run sslgh "
            "classify with --model"
        ) from None
    if model.fingerprint != card["fingerprint"]:
        raise DataError(
            f"{printable(model.name)} has other weights or preprocessing than those that {located(folder / CARD)} was "
            "made with; run sslgh classify again"
        )
    if fitted.heads[fitted.objective].weight.shape[1] != model.num_features:
        raise DataError(
            f"{located(folder)} does not fit {printable(model.name)}; run sslgh classify again"
        )
    return replace(model, classifier=_linear(fitted), class_names=fitted.class_names)


def _linear(fitted: Fitted) -> nn.Linear:
    """The chosen head, its temperature and its prior as one layer."""
    head = fitted.heads[fitted.objective]
    layer = nn.Linear(head.weight.shape[1], head.weight.shape[0]).requires_grad_(False)
    shift = classifier_of(fitted, "").default.log()
    layer.weight.copy_(head.weight / fitted.temperature)
    layer.bias.copy_(head.bias / fitted.temperature + shift)
    return layer.eval()
