"""A frozen network for photos: backbone, its own preprocessing, and a classifier if it has one."""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sslgh.models.fingerprint import weights_fingerprint
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.models.serialization import CLASSIFIER, load_backbone, load_classifier
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.schema import Model

# Side (pixels) of the images for a network that leaves it open, by the stem of its convolutions.
SIDES = {"cifar": 32, "imagenet": 224}
# Names of timm have no @; what follows one in a name of the hub is a revision.
WITH_SIDE = re.compile(r"(timm:.+)@([1-9][0-9]*)")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network in eval mode, without gradients.

    Attributes:
        name: Name that it was loaded by.
        backbone: Images (N, 3, S, S) to features (N, F), with attribute ``num_features`` (F).
        preprocess: Makes its input from a PIL image; the weights' own.
        fingerprint: Hash of weights, architecture and preprocessing (32 hex digits).
        classifier: Features (N, F) to logits (N, C), or None.
        class_names: C names; empty without a classifier.
    """

    name: str
    backbone: nn.Module
    preprocess: Preprocessing
    fingerprint: str
    classifier: nn.Module | None = None
    class_names: tuple[str, ...] = ()

    @property
    def num_features(self) -> int:
        """F."""
        return int(self.backbone.num_features)  # type: ignore[arg-type]


def run_model(name: str, directory: Path) -> LoadedModel:
    """The network of a run directory, with its classifier if the run was finetuned; raises as `load_backbone`."""
    if not (directory / CLASSIFIER).is_file():
        return _loaded(name, load_backbone(directory)[0])
    network, card = load_classifier(directory)
    return _loaded(name, network[0], network[1], tuple(card["class_names"]))


def library_model(name: str) -> LoadedModel:
    """A library's pretrained backbone; raises as `initial_backbone`.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``hf-hub:NAME``, ``local-dir:FOLDER`` or ``package:NAME``; images have
            the side of the weights, or for ``timm:NAME@S`` S pixels.
    """
    weights, side = weights_and_side(name)
    return described_model(name, Model(init=weights), image_size=side)


def weights_and_side(name: str) -> tuple[str, int | None]:
    """Name of the weights, and S (pixels) where it is not their own.

    Examples:
        >>> weights_and_side("timm:test_vit@96"), weights_and_side("hf-hub:timm/resnet18@96")
        (('timm:test_vit', 96), ('hf-hub:timm/resnet18@96', None))
    """
    found = WITH_SIDE.fullmatch(name)
    return (name, None) if found is None else (found[1], int(found[2]))


def described_model(name: str, model: Model, *, image_size: int | None = None) -> LoadedModel:
    """The backbone that the ``model`` of a recipe begins with; raises as `initial_backbone`."""
    card = initial_card(model)
    size = image_size or card["image_size"] or SIDES[card["stem"]]
    return _loaded(name, initial_backbone(model, size))


def _loaded(
    name: str,
    backbone: nn.Module,
    classifier: nn.Module | None = None,
    class_names: tuple[str, ...] = (),
) -> LoadedModel:
    for part in (backbone, classifier or nn.Identity()):
        part.eval().requires_grad_(False)
    preprocess = Preprocessing.of(backbone)
    fingerprint = weights_fingerprint(backbone, str(preprocess))
    return LoadedModel(name, backbone, preprocess, fingerprint, classifier, class_names)
