"""The folder that ``sslgh classify`` writes: heads, what they were made from, and how they were measured.

Shapes: N labeled photos, F features, C kinds.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sslgh.data.image_set import DataError
from sslgh.explore.novelty import Novelty
from sslgh.explore.photo_classifier import PhotoClassifier
from sslgh.explore.photo_heads import DECIDES_BY_SHARES, AffineHead
from sslgh.models.serialization import PHOTO_CLASSIFIER, save_tensors
from sslgh.recipe.errors import located

CARD, TENSORS = PHOTO_CLASSIFIER, "photo_classifier.safetensors"
FORMAT = 1


class Fitted(NamedTuple):
    """Heads on the features of one model.

    Attributes:
        class_names: C names.
        counts: Labels of each kind, shape (C,).
        heads: Heads by objective.
        objective: The one that predicts.
        temperature: What divides its log likelihoods.
        novelty: Distances of labeled photos.
    """

    class_names: tuple[str, ...]
    counts: Tensor
    heads: Mapping[str, AffineHead]
    objective: str
    temperature: float
    novelty: Novelty


def classifier_of(fitted: Fitted, source: str) -> PhotoClassifier:
    """The chosen head, calibrated."""
    head, temperature = fitted.heads[fitted.objective], fitted.temperature
    shares = fitted.counts.double() / fitted.counts.sum()
    equal = torch.full_like(shares, 1 / len(shares))
    return PhotoClassifier(
        fitted.class_names,
        lambda features: head.scores(features).double() / temperature,
        shares if fitted.objective in DECIDES_BY_SHARES else equal,
        shares,
        "",
        fitted.novelty,
        source,
    )


def save_fitted(fitted: Fitted, folder: Path, card: dict[str, Any]) -> None:
    """Write both files; ``card`` holds further entries, among them ``model`` and ``fingerprint``.

    Raises:
        OSError: If they cannot be written.
    """
    tensors = {
        f"{name}.{part}": tensor.float()
        for name, head in fitted.heads.items()
        for part, tensor in head._asdict().items()
    }
    tensors |= {"novelty.center": fitted.novelty.center, "novelty.rows": fitted.novelty.rows}
    own = {
        "format": FORMAT,
        "class_names": list(fitted.class_names),
        "labels": fitted.counts.tolist(),
        "objectives": list(fitted.heads),
        "objective": fitted.objective,
        "temperature": fitted.temperature,
        # JSON has no infinity: a distance that nothing reaches.
        "novelty_threshold": min(fitted.novelty.threshold, 10.0),
        "novelty_false_alarms": fitted.novelty.rate,
    }
    temporary = folder / f"{TENSORS}.tmp"
    save_tensors(tensors, temporary)
    temporary.replace(folder / TENSORS)
    text = json.dumps(own | card, indent=2) + "\n"
    temporary = folder / f"{CARD}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / CARD)


def is_classifier_folder(spec: str | Path) -> bool:
    """Whether a path is a folder that `save_fitted` has written."""
    return os.path.isfile(Path(spec).expanduser() / CARD)  # noqa: PTH113 - never raises


def load_fitted(folder: Path) -> tuple[Fitted, dict[str, Any]]:
    """What `save_fitted` has written, and the whole card.

    Raises:
        DataError: If a file is missing or damaged, or the two do not fit.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        heads = {
            str(name): AffineHead(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
            for name in card["objectives"]
        }
        novelty = Novelty(
            tensors["novelty.center"],
            tensors["novelty.rows"],
            float(card["novelty_threshold"]),
            float(card["novelty_false_alarms"]),
        )
        fitted = Fitted(
            tuple(map(str, card["class_names"])),
            torch.tensor(card["labels"]),
            heads,
            str(card["objective"]),
            float(card["temperature"]),
            novelty,
        )
        _check(fitted, card)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{located(folder)} cannot be read as a classifier ({str(error).splitlines()[0]}); run sslgh classify "
            "again"
        ) from None
    return fitted, card


def _check(fitted: Fitted, card: Mapping[str, Any]) -> None:
    if card["format"] != FORMAT:
        raise ValueError(f"format {card['format']}, this sslgh reads {FORMAT}")
    classes = len(fitted.class_names)
    shapes = {head.weight.shape[:1] + head.bias.shape for head in fitted.heads.values()}
    if shapes != {(classes, classes)} or fitted.counts.shape != (classes,):
        raise ValueError(f"{TENSORS} and {CARD} do not fit")
    if fitted.objective not in fitted.heads or not (0 < fitted.temperature < math.inf):
        raise ValueError(f"{CARD} names no head that can predict")
    if not (isinstance(card["model"], str) and isinstance(card["fingerprint"], str)):
        raise TypeError(f"{CARD} names no model")
