"""Metadata of a saved backbone: how to rebuild it, its input, its origin."""

from pathlib import Path
from typing import Any

from sslgh import __version__
from sslgh.data import MEAN, STD
from sslgh.models.backbones import resolve_patch
from sslgh.models.serialization import read_card
from sslgh.recipe import Recipe


def backbone_metadata(recipe: Recipe, *, image_size: int, method: str) -> dict[str, Any]:
    """The card of a run's backbone; worth making before the run, while ``model.init`` is still there.

    Args:
        recipe: The run; its backbone is that of ``model.init``, or the recipe's own.
        image_size: Side of the input (pixels).
        method: What trained it.

    Raises:
        ValueError: If ``model.init`` holds no backbone.
    """
    model, shape = recipe.model, ("backbone", "stem", "width")
    if model.init is None or model.init == "pretrained":
        source = {key: getattr(model, key) for key in shape}
        source["patch"] = resolve_patch(model.backbone, patch=model.patch, image_size=image_size)
    else:
        source = read_card(Path(model.init).expanduser())
    return {
        "format": 1,
        **{key: source[key] for key in shape},
        "patch": source.get("patch"),
        "image_size": image_size,
        "mean": MEAN,
        "std": STD,
        "method": method,
        "run": recipe.name,
        "sslgh": __version__,
    }
