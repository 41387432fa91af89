"""Datasets over a set of images: two random views and local crops, the plain image, one weak view."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslgh.data.augment import NUM_PARAMS, draw_params
from sslgh.data.batch_sampler import SampleKey
from sslgh.data.broken_images import load_or_replace
from sslgh.data.crop import CROP_PARAMS, pixels, plain_crop, random_box, resized_crop
from sslgh.data.image_set import ImageSet
from sslgh.data.rng import LOCAL, VIEWS, WEAK, rng_for
from sslgh.recipe.data import Augment


def local_side(augment: Augment, size: int) -> int:
    """Side s of a local crop (pixels) beside full views of ``size``.

    Without a ``local_size`` the 96 of 224 pixels of SwAV and DINO, as a multiple of 4 for the patches
    of a ViT.

    Examples:
        >>> [local_side(Augment(), size) for size in (224, 32, 8)]
        [96, 12, 4]
    """
    return augment.local_size or max(4, 4 * round(size * 3 / 28))


class PretrainBatch(NamedTuple):
    """Samples of pretraining, N in a batch; a single sample has the same fields without N.

    ``augment_views`` and ``augment_local_views`` turn crops and their random numbers into views.

    Attributes:
        crops: Full crops, uint8 (N, 2, 3, S, S).
        params: Uniform random numbers of their augmentation, float32 (N, 2, ``NUM_PARAMS``).
        local_crops: Local crops, uint8 (N, L, 3, s, s); L is 0 without multi-crop.
        local_params: Uniform random numbers of theirs, float32 (N, L, ``NUM_PARAMS``).
        index: Positions of the images in the training set, int64 (N,).
        broken: Position that was asked for where that image cannot be read and another one is shown;
            else -1, int64 (N,).
    """

    crops: Tensor
    params: Tensor
    local_crops: Tensor
    local_params: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    broken: Tensor


class SupervisedBatch(NamedTuple):
    """Samples of supervised training, N in a batch; a single sample has the same fields without N.

    ``normalize`` readies the view for the network, ``augment_views`` the crops.

    Attributes:
        view: View by the policy, uint8 (N, 3, S, S).
        crops: Crops of `PretrainBatch`, uint8 (N, V, 3, S, S); V is 2, or 0 without contrast.
        params: Uniform random numbers of their augmentation, float32 (N, V, ``NUM_PARAMS``).
        target: Labels, int64 (N,).
        index: Positions of the images in the training set, int64 (N,).
        broken: As in `PretrainBatch`.
    """

    view: Tensor
    crops: Tensor
    params: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    broken: Tensor


class PretrainDataset(Dataset[PretrainBatch]):
    """Two random resized crops of an image, L small ones, and the random numbers for their colors.

    A sample depends on the seed and its ``SampleKey`` alone, and the full crops not on L. An image that
    cannot be read is replaced by ``load_or_replace``.

    Args:
        images: The training set.
        augment: Number L, area, aspect and interpolation of the crops.
        size: S (pixels).
        seed: Random seed of the run.
    """

    def __init__(self, images: ImageSet, augment: Augment, *, size: int, seed: int) -> None:
        self.images = images
        self.augment = augment
        self.size = size
        self.seed = seed
        self.local_size = local_side(augment, size)
        self._no_crops = (
            torch.empty(0, 3, self.local_size, self.local_size, dtype=torch.uint8),
            torch.empty(0, NUM_PARAMS),
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> PretrainBatch:
        image, key, broken = load_or_replace(self.images, key, seed=self.seed)
        crops, local_crops = self.crops(image, key), self._local_crops(image, key)
        return PretrainBatch(*crops, *local_crops, torch.tensor(key.index), torch.tensor(broken))

    def crops(self, image: Image.Image, key: SampleKey) -> tuple[Tensor, Tensor]:
        """Full crops of a loaded image, and the random numbers of their augmentation."""
        rng = rng_for(self.seed, VIEWS, key.epoch, key.index, key.repeat)
        crop_params, params = draw_params(rng, 2)
        crops = self._cut(image, crop_params, self.augment.crop_scale, self.size)
        return crops, torch.from_numpy(params)

    def _local_crops(self, image: Image.Image, key: SampleKey) -> tuple[Tensor, Tensor]:
        if not self.augment.local_crops:
            return self._no_crops
        # A stream of their own: what the full views draw does not move it.
        rng = rng_for(self.seed, LOCAL, key.epoch, key.index, key.repeat)
        crop_params, params = draw_params(rng, self.augment.local_crops, local=True)
        crops = self._cut(image, crop_params, self.augment.local_scale, self.local_size)
        return crops, torch.from_numpy(params)

    def _cut(
        self,
        image: Image.Image,
        crop_params: NDArray[np.float32],
        scale: tuple[float, float],
        size: int,
    ) -> Tensor:
        """One random resized crop per row of ``crop_params``."""
        crops = np.empty((len(crop_params), 3, size, size), dtype=np.uint8)
        for view, numbers in enumerate(crop_params.tolist()):
            box = random_box(*image.size, numbers, scale=scale, ratio=self.augment.crop_ratio)
            crops[view] = resized_crop(image, box, size, self.augment.interpolation)
        return torch.from_numpy(crops)


class EvalDataset(Dataset[tuple[Tensor, int]]):
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
        flip, *random_params = rng_for(self.seed, WEAK, 0, index).random(1 + CROP_PARAMS).tolist()
        image = self.images.image(index)
        view = (
            self._shifted(image, random_params)
            if self.size <= 64
            else self._resized(image, random_params)
        )
        return torch.from_numpy(view[..., ::-1].copy() if flip < 0.5 else view), index

    def _shifted(self, image: Image.Image, random_params: list[float]) -> NDArray[np.uint8]:
        padded = np.pad(pixels(plain_crop(image, self.size)), ((0, 0), (4, 4), (4, 4)))
        top, left = int(random_params[0] * 9), int(random_params[1] * 9)
        return padded[:, top : top + self.size, left : left + self.size].copy()

    def _resized(self, image: Image.Image, random_params: list[float]) -> NDArray[np.uint8]:
        box = random_box(*image.size, random_params, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
        return resized_crop(image, box, self.size, "bilinear")
