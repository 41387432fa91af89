"""The network of a run that is exported, and what it gives for drawn images.

Shapes: N images, S side of the network's input (pixels), F features, C classes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sslgh.models.classifier import CosineClassifier
from sslgh.models.serialization import CLASSIFIER, load_backbone, load_classifier, load_head
from sslgh.preprocessing import Preprocessing

# Heights and widths of the drawn images, in sides of the input: upright, lying, square. An image that is no larger than
# the input is not among them: other libraries enlarge it and cut its border off, which `Preprocessing` does not.
SHAPES = ((2.3, 1.7), (1.4, 2.6), (3.0, 3.0))


class Source(NamedTuple):
    """A trained network.

    Attributes:
        run: The run directory.
        card: Card of the backbone: architecture and training.
        backbone: (N, 3, S, S) to (N, F), in eval mode.
        classifier: (N, F) to (N, C), or None.
        class_names: C names; empty without a classifier.
        preprocess: Makes the input from a PIL image.
    """

    run: Path
    card: dict[str, Any]
    backbone: nn.Module
    classifier: nn.Linear | CosineClassifier | None
    class_names: tuple[str, ...]
    preprocess: Preprocessing

    @property
    def size(self) -> int:
        """S."""
        return self.preprocess.size

    def outputs(self, images: Tensor) -> Tensor:
        """Logits (N, C), or features (N, F) without a classifier, of normalized images (N, 3, S, S)."""
        with torch.no_grad():
            features: Tensor = self.backbone(images)
            return features if self.classifier is None else self.classifier(features)


def read_source(run: Path, *, features: bool = False) -> Source:
    """The network of a run.

    Args:
        run: The run directory.
        features: Leave the classifier of a finetuned run out.

    Raises:
        ValueError: If there is none.
    """
    names: tuple[str, ...] = ()
    classifier = load_head(run) if (run / CLASSIFIER).is_file() and not features else None
    if classifier is None:
        backbone, card = load_backbone(run)
    else:
        network, card = load_classifier(run)  # which checks that the files fit each other
        backbone, names = network[0], tuple(card["class_names"])
        classifier.eval().requires_grad_(False)
    preprocess = Preprocessing.of(backbone)
    return Source(run, card, backbone.requires_grad_(False), classifier, names, preprocess)


def drawn_images(size: int) -> list[Image.Image]:
    """Images of several shapes, larger than S, smooth enough that resizing them means something."""
    rng = np.random.default_rng(0)
    images = []
    for high, wide in SHAPES:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        images.append(coarse.resize((int(wide * size), int(high * size)), Image.Resampling.BICUBIC))
    return images
