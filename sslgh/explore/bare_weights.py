"""The backbone that a file of weights is of: named after an @, or the known one that the file fits."""

from itertools import product
from pathlib import Path

import torch

from sslgh.explore.loaded_model import LoadedModel, described_model
from sslgh.models.backbones import build_backbone
from sslgh.models.weight_files import LEAST, SUFFIXES, matched, read_tensors
from sslgh.recipe.errors import located, printable
from sslgh.recipe.schema import Model

# Backbones that a file is tried with, by name and stem; of equals the first one.
CANDIDATES = (
    *product(("resnet50", "resnet18", "resnet34"), ("imagenet", "cifar")),
    *product(("resnet20", "resnet32", "resnet56"), ("cifar",)),
)


def is_weights_file(name: str) -> bool:
    """Whether a name is FILE or FILE@BACKBONE with a suffix of weights."""
    return Path(name.rpartition("@")[0] or name).suffix in SUFFIXES or Path(name).suffix in SUFFIXES


def file_model(name: str) -> LoadedModel:
    """The backbone with the weights of a file.

    Args:
        name: FILE, which is tried with `CANDIDATES`, or FILE@BACKBONE, such as
            ``moco.pth.tar@torchvision:resnet50``.

    Raises:
        ValueError: If there is no such file, or it does not fit the backbone.
    """
    file, _, backbone = (name, "", "") if Path(name).suffix in SUFFIXES else name.rpartition("@")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"{located(path)} does not exist; expected a file of weights")
    model = {"backbone": backbone} if backbone else _fitting(path)
    return described_model(name, Model(**model, init=str(path)))


def _fitting(path: Path) -> dict[str, str]:
    """The candidate of which the file holds the largest share, and the least else."""
    tensors = read_tensors(path)
    fits: list[tuple[float, int, int]] = []
    for position, (backbone, stem) in enumerate(CANDIDATES):
        with torch.device("meta"):
            built = build_backbone(backbone, stem=stem)
        report, _ = matched(built, tensors, path)
        fits.append((-report.share, len(report.left_over), position))
    share, _, best = min(fits)
    if -share < LEAST:
        names = ", ".join(dict.fromkeys(backbone for backbone, _ in CANDIDATES))
        raise ValueError(
            f"{located(path)} holds the weights of none of {names}; name its backbone after an @: "
            f"{printable(path.name)}@timm:NAME"
        )
    return dict(zip(("backbone", "stem"), CANDIDATES[best], strict=True))
