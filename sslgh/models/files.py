"""A backbone on disk: ``backbone.safetensors`` beside ``backbone.json``."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from sslgh.models.backbones import build_backbone

WEIGHTS, CARD = "backbone.safetensors", "backbone.json"


def save_backbone(backbone: nn.Module, directory: Path, card: dict[str, Any]) -> None:
    """Write the weights under torchvision's or timm's own names, and what rebuilds the module.

    Args:
        backbone: The module.
        directory: The run directory.
        card: ``backbone``, ``stem``, ``width``, ``image_size`` and whatever else a reader of
            the file should know (mean, std, versions).
    """
    weights = {
        name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()
    }
    temporary = directory / f"{WEIGHTS}.tmp"
    save_file(weights, temporary)
    temporary.replace(directory / WEIGHTS)
    temporary = directory / f"{CARD}.tmp"
    temporary.write_text(json.dumps(card, indent=2) + "\n")
    temporary.replace(directory / CARD)


def load_backbone(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone of a run, and its card.

    Raises:
        ValueError: If the directory holds no backbone, or one that does not fit its card.
    """
    if not (directory / CARD).is_file():
        raise ValueError(f"{directory} holds no {CARD}; a run writes it when pretraining is done")
    card = json.loads((directory / CARD).read_text())
    backbone = build_backbone(
        card["backbone"], stem=card["stem"], width=card["width"], image_size=card["image_size"]
    )
    try:
        backbone.load_state_dict(load_file(directory / WEIGHTS))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{directory / WEIGHTS} is not a {card['backbone']}: {reason}") from None
    return backbone, card
