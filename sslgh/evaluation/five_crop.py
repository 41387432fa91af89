"""Test images as five crops, whose logits are averaged (LIFT, arXiv:2309.10019).

Shapes: N images, F features, S side of the network's input (pixels).
"""

import torch
import torchvision.transforms.functional as tv
from accelerate import Accelerator
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from sslgh.data import ImageSet, num_workers
from sslgh.evaluation.features import extract_features
from sslgh.preprocessing import Preprocessing, pixels
from sslgh.recipe.data import Data

CROPS = 5


class FiveCrops:
    """Corners and center of every image, uint8 (3, S, S), crop by crop, and their positions.

    Args:
        images: N images.
        preprocessing: S, and how images are resized.
        enlarge: Pixels by which the short side, or both where images are squashed, are resized beyond S.
    """

    def __init__(self, images: ImageSet, preprocessing: Preprocessing, enlarge: int) -> None:
        self.images, self.preprocessing, self.enlarge = images, preprocessing, enlarge

    def __len__(self) -> int:
        return CROPS * len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images.image(index // CROPS)
        size, filter_name = self.preprocessing.size, self.preprocessing.interpolation
        side = size + self.enlarge
        target = [side, side] if self.preprocessing.squash else side
        resized = tv.resize(image, target, InterpolationMode(filter_name))
        crop = tv.five_crop(resized, size)[index % CROPS]
        return torch.from_numpy(pixels(crop)), index


def five_crop_features(
    backbone: nn.Module,
    images: ImageSet,
    data: Data,
    *,
    size: int,
    enlarge: int,
    accelerator: Accelerator,
) -> list[Tensor]:
    """Features (N, F) of each of the five crops. Collective: call it on every rank.

    Raises:
        DataError: If an image cannot be read.
    """
    crops = FiveCrops(images, Preprocessing.of(backbone).at(size), enlarge)
    workers = num_workers(data, in_memory=images.in_memory)
    found = extract_features(backbone, crops, accelerator=accelerator, workers=workers)
    return [found[first::CROPS] for first in range(CROPS)]
