"""Datasets over a set of images: two random views, the plain image, one weak view."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslgh.data.colour import NUM_DRAWS
from sslgh.data.crop import CROP_DRAWS, pixels, plain_crop, random_box, resized_crop
from sslgh.data.images import ImageSet
from sslgh.data.streams import VIEWS, WEAK, stream
from sslgh.recipe.data import Augment


class TwoViews(Dataset[tuple[Tensor, Tensor, int]]):
    """Two random resized crops of an image and the draws for their colours.

    Item ``(epoch, index)`` is uint8 (2, 3, S, S), float32 (2, ``NUM_DRAWS``) and the index; it depends on
    the seed, the epoch and the index alone. ``render_views`` makes the views of a batch of items.

    Args:
        images: The training set.
        augment: Area, aspect and interpolation of the crops.
        size: S (pixels).
        seed: Of the run.
    """

    def __init__(self, images: ImageSet, augment: Augment, *, size: int, seed: int) -> None:
        self.images = images
        self.augment = augment
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        _, index = key
        return *self.crops(self.images.image(index), key), index

    def crops(self, image: Image.Image, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Crops and draws of an image that is read already."""
        uniform = stream(self.seed, VIEWS, *key).random(
            (2, CROP_DRAWS + NUM_DRAWS), dtype=np.float32
        )
        scale, ratio = self.augment.crop_scale, self.augment.crop_ratio
        crops = np.empty((2, 3, self.size, self.size), dtype=np.uint8)
        for view, draws in enumerate(uniform[:, :CROP_DRAWS].tolist()):
            box = random_box(*image.size, draws, scale=scale, ratio=ratio)
            crops[view] = resized_crop(image, box, self.size, self.augment.interpolation)
        return torch.from_numpy(crops), torch.from_numpy(uniform[:, CROP_DRAWS:].copy())


class Plain(Dataset[tuple[Tensor, int]]):
    """The image as evaluation sees it: uint8 (3, S, S) and its index.

    Images of S x S pixels are left alone; others get a short side of S * 256 / 224 and are cut to the
    central square.
    """

    def __init__(self, images: ImageSet, *, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(pixels(plain_crop(self.images.image(index), self.size))), index


class Weak(Dataset[tuple[Tensor, int]]):
    """One weakly augmented view, uint8 (3, S, S), drawn once for a seed and an index.

    Up to 64 pixels: zero padding of 4, a random crop and a flip, as on CIFAR. Above: torchvision's
    random resized crop with its own defaults (area 0.08 to 1) and a flip.
    """

    def __init__(self, images: ImageSet, *, size: int, seed: int) -> None:
        self.images = images
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        flip, *draws = stream(self.seed, WEAK, 0, index).random(1 + CROP_DRAWS).tolist()
        image = self.images.image(index)
        view = self._shifted(image, draws) if self.size <= 64 else self._resized(image, draws)
        return torch.from_numpy(view[..., ::-1].copy() if flip < 0.5 else view), index

    def _shifted(self, image: Image.Image, draws: list[float]) -> NDArray[np.uint8]:
        padded = np.pad(pixels(plain_crop(image, self.size)), ((0, 0), (4, 4), (4, 4)))
        top, left = int(draws[0] * 9), int(draws[1] * 9)
        return padded[:, top : top + self.size, left : left + self.size].copy()

    def _resized(self, image: Image.Image, draws: list[float]) -> NDArray[np.uint8]:
        box = random_box(*image.size, draws, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
        return resized_crop(image, box, self.size, "bilinear")
