"""A network on disk: ``backbone.safetensors`` beside ``backbone.json``, and its classifier."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sslgh.models.backbones import build_backbone, resize_backbone
from sslgh.models.classifier import CosineClassifier

WEIGHTS, CARD = "backbone.safetensors", "backbone.json"
CLASSIFIER = "classifier.safetensors"


def save_backbone(backbone: nn.Module, directory: Path, card: dict[str, Any]) -> None:
    """Write the weights under torchvision's or timm's own names, and what rebuilds the module.

    Args:
        backbone: The module.
        directory: The run directory.
        card: ``backbone``, ``stem``, ``width``, ``patch``, ``image_size`` and whatever else a reader of
            the file should know (mean, std, versions).
    """
    weights = {
        name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()
    }
    _replace(directory / WEIGHTS, lambda file: save_file(weights, file))
    text = json.dumps(card, indent=2) + "\n"
    _replace(directory / CARD, lambda file: file.write_text(text))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, flush it, rename it: a reader never sees a part.

    Raises:
        OSError: If that fails; what was there stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]})") from None
    temporary.replace(path)


def load_backbone(
    directory: Path, *, image_size: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone of a run, and its card.

    Args:
        directory: Of the run.
        image_size: Side (pixels) that a transformer is to be made for; None: that of its training.

    Raises:
        ValueError: If the directory holds no backbone, or one that does not fit its card.
    """
    card = read_card(directory)
    name, size = card["backbone"], card["image_size"]
    patch = card.get("patch")  # cards of runs before there was one have none
    backbone = build_backbone(
        name, stem=card["stem"], width=card["width"], patch=patch, image_size=size
    )
    try:
        backbone.load_state_dict(load_file(directory / WEIGHTS))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{directory / WEIGHTS} is not a {name}: {reason}") from None
    if image_size not in (None, size):
        resize_backbone(backbone, name, patch=patch, image_size=image_size)
    return backbone, card


def read_card(directory: Path) -> dict[str, Any]:
    """The card of a run's backbone.

    Raises:
        ValueError: If the directory holds none.
    """
    if not (directory / CARD).is_file():
        raise ValueError(f"{directory} holds no {CARD}; a run writes it when training is done")
    return dict(json.loads((directory / CARD).read_text()))


def save_classifier(classifier: nn.Linear | CosineClassifier, directory: Path) -> None:
    """Write ``classifier.safetensors``: ``weight`` (C, F), and ``bias`` (C,) or the ``scale`` of cosines."""
    tensors = {name: value.detach().cpu() for name, value in classifier.state_dict().items()}
    if isinstance(classifier, CosineClassifier):
        tensors["scale"] = Tensor([classifier.scale])
    _replace(directory / CLASSIFIER, lambda file: save_file(tensors, file))


def load_classifier(directory: Path) -> nn.Linear | CosineClassifier:
    """The classifier of a finetuned run: (N, F) to (N, C).

    Raises:
        ValueError: If the directory holds none.
    """
    path = directory / CLASSIFIER
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no {CLASSIFIER}; sslgh finetune writes it when it is done"
        )
    tensors = load_file(path)
    classes, features = tensors["weight"].shape
    classifier: nn.Linear | CosineClassifier = nn.Linear(features, classes)
    if "scale" in tensors:
        scale = tensors.pop("scale").item()
        classifier = CosineClassifier(features, classes, scale=scale)
    classifier.load_state_dict(tensors)
    return classifier
