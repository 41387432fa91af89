"""The backbone that training or evaluation begins with: drawn, or a run's, a library's, the hub's or a file's."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from sslgh.models.backbones import build_backbone, drawn_backbone
from sslgh.models.pretrained import LIBRARIES, is_library, library_card, pretrained_backbone
from sslgh.models.serialization import load_backbone, read_card, run_of
from sslgh.models.weight_files import SUFFIXES, load_weights
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import RecipeError
from sslgh.recipe.errors import located
from sslgh.recipe.schema import Model

log = logging.getLogger(__name__)

PRETRAINED = "pretrained"
EXPECTED = (
    f"a run directory, {', '.join(f'{prefix}NAME' for prefix in LIBRARIES)}, a file "
    f"({', '.join(SUFFIXES)}) or the word pretrained"
)


def initial_card(model: Model) -> dict[str, Any]:
    """Architecture and preprocessing that ``model`` begins with; no weights are read.

    Returns:
        ``backbone``, ``stem``, ``width``, ``patch``, ``image_size`` (None: the weights leave it open), and the
        preprocessing's keys.

    Raises:
        ValueError: If ``model.init`` names nothing that can be loaded, or something else than ``model.backbone``.
    """
    drawn = model.model_dump(include={"backbone", "stem", "width", "patch"}) | {"image_size": None}
    if model.init is None:
        return drawn | Preprocessing().card()
    if (run := _run_directory(model.init)) is not None:
        card = read_card(run)
        _check_agreement(model, card)
        return card
    if is_library(model.init):
        found = library_card(model.init)
        _check_agreement(model, found)
        return found
    if model.init != PRETRAINED:
        _check_file(model.init)
    if is_library(model.backbone):
        return library_card(model.backbone)
    return drawn | Preprocessing().card()


def initial_backbone(model: Model, image_size: int) -> nn.Module:
    """The backbone that ``model`` begins with, with attributes ``num_features`` and ``preprocessing``.

    Weights that nothing sets are drawn by torch's generator.

    Args:
        model: The recipe's model.
        image_size: Side of the input (pixels), for transformers that must know it.

    Raises:
        ValueError: If it cannot be built, or there are no such weights.
    """
    if model.init is None:
        return drawn_backbone(model, image_size)
    return _trained_backbone(model, model.init, image_size)


def _trained_backbone(model: Model, init: str, image_size: int) -> nn.Module:
    """The backbone with the weights that ``init`` names; as `initial_backbone`."""
    card = initial_card(model)
    if (run := _run_directory(init)) is not None:
        return load_backbone(run, image_size=image_size)[0]
    if is_library(init):
        backbone = pretrained_backbone(init, image_size)
    elif init == PRETRAINED and is_library(model.backbone):
        backbone = pretrained_backbone(model.backbone, image_size)
    else:
        shape = model.model_dump(include={"stem", "width", "patch"})
        pretrained = init == PRETRAINED  # refused: ours have no weights of their own
        backbone = build_backbone(
            model.backbone, **shape, image_size=image_size, pretrained=pretrained
        )
        if init != PRETRAINED:
            file = Path(init).expanduser()
            # What an adapter freezes must not be drawn.
            least = model.init_least if model.adapter is None else 1
            log.warning("%s", load_weights(backbone, file, least=least))
    preprocessing = Preprocessing.from_card(card | {"image_size": image_size})
    backbone.preprocessing = preprocessing  # type: ignore[assignment]
    return backbone


def _run_directory(init: str) -> Path | None:
    """The run directory that ``init`` names; any other folder too, whose reading says what it lacks."""
    path = Path(init).expanduser()
    return run_of(init) or (path if path.is_dir() and not is_library(init) else None)


def _check_file(init: str) -> None:
    path = Path(init).expanduser()
    if path.suffix not in SUFFIXES or not path.is_file():
        raise RecipeError(f"model.init: {located(init)} is not {EXPECTED}")


def _check_agreement(model: Model, card: dict[str, Any]) -> None:
    """Refuse a recipe that asks for another backbone than its weights are of."""
    for key in ("backbone", "stem", "width", "patch"):
        asked, held = getattr(model, key), card.get(key)
        if key in model.model_fields_set and asked not in (None, held):
            raise RecipeError(
                f"model.{key} is {asked}, but {model.init} holds {held}; leave model.{key} out"
            )
