"""Datasets over a set of images: for pretraining, supervised training and evaluation."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslgh.data.augment import NUM_PARAMS, draw_params
from sslgh.data.batch_sampler import LABELED, LOCAL, VIEWS, WEAK, SampleKey, rng_for
from sslgh.data.crop import Range, random_box, resized_crop
from sslgh.data.image_set import ImageSet, load_or_replace
from sslgh.data.supervised_augment import random_view, weak_view
from sslgh.preprocessing import Preprocessing, pixels
from sslgh.recipe.data import Augment
from sslgh.recipe.finetune import Policy


def local_side(augment: Augment, size: int) -> int:
    """Side s of a local crop (pixels): SwAV's and DINO's 96 of 224, as a multiple of 4 for a ViT's patches.

    Examples:
        >>> [local_side(Augment(), size) for size in (224, 32, 8)]
        [96, 12, 4]
    """
    return augment.local_size or max(4, 4 * round(size * 3 / 28))


class PretrainBatch(NamedTuple):
    """Samples of pretraining, N in a batch; a single sample has the same fields without N, and numbers for ().

    ``augment_views`` turns crops and their random numbers into views.

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
    """Samples of supervised training, N in a batch; a single sample has the same fields without N, and numbers for ().

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
        self.images, self.augment, self.size, self.seed = images, augment, size, seed
        self.local_size = local_side(augment, size)
        no_pixels = torch.empty(0, 3, self.local_size, self.local_size, dtype=torch.uint8)
        self._no_crops = no_pixels, torch.empty(0, NUM_PARAMS)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> PretrainBatch:
        image, key, broken = load_or_replace(self.images, key, seed=self.seed)
        crops = self.crops(image, key)
        local_crops = self._local_crops(image, key) if self.augment.local_crops else self._no_crops
        # The loader makes tensors of the two numbers, one per batch instead of one per sample.
        return PretrainBatch(*crops, *local_crops, key.index, broken)  # type: ignore[arg-type]

    def crops(self, image: Image.Image, key: SampleKey) -> tuple[Tensor, Tensor]:
        """Full crops of a loaded image, and the random numbers of their augmentation."""
        rng = rng_for(self.seed, VIEWS, key.epoch, key.index, key.repeat)
        crop_params, params = draw_params(rng, 2)
        crops = self._cut(image, crop_params, self.augment.crop_scale, self.size)
        return crops, torch.from_numpy(params)

    def _local_crops(self, image: Image.Image, key: SampleKey) -> tuple[Tensor, Tensor]:
        # A stream of their own: what the full views draw does not move it.
        rng = rng_for(self.seed, LOCAL, key.epoch, key.index, key.repeat)
        crop_params, params = draw_params(rng, self.augment.local_crops, local=True)
        crops = self._cut(image, crop_params, self.augment.local_scale, self.local_size)
        return crops, torch.from_numpy(params)

    def _cut(
        self, image: Image.Image, crop_params: NDArray[np.float32], scale: Range, size: int
    ) -> Tensor:
        """One random resized crop per row of ``crop_params``."""
        crops = np.empty((len(crop_params), 3, size, size), dtype=np.uint8)
        for view, numbers in enumerate(crop_params.tolist()):
            box = random_box(*image.size, numbers, scale=scale, ratio=self.augment.crop_ratio)
            crops[view] = resized_crop(image, box, size, self.augment.interpolation or "bilinear")
        return torch.from_numpy(crops)


class SupervisedDataset(Dataset[SupervisedBatch]):
    """A view by the policy, the two crops of ``PretrainDataset``, the label and the index.

    A sample depends on the seed and its ``SampleKey`` alone, and the crops are those of self-supervised
    training. An image that cannot be read is replaced by ``load_or_replace``; label and index are then
    the replacement's.

    Args:
        images: The training set, with labels.
        augment: Settings of the two crops; their interpolation is the view's too.
        size: S (pixels).
        seed: Random seed of the run.
        policy: Augmentation of the view.
        contrast: Whether the crops are wanted.
        preprocessing: How evaluation resizes and cuts.

    Raises:
        ValueError: If the images have no labels.
    """

    def __init__(
        self,
        images: ImageSet,
        augment: Augment,
        *,
        size: int,
        seed: int,
        policy: Policy = "crop-flip",
        contrast: bool = False,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - immutable
    ) -> None:
        if images.labels is None:
            raise ValueError("supervised training needs labels, and this set of images has none")
        self.images = images
        self.labels: list[int] = images.labels.tolist()
        self.preprocessing = preprocessing.at(size)
        self.seed = seed
        self.policy: Policy = policy
        self.interpolation = augment.interpolation
        self.crops = PretrainDataset(images, augment, size=size, seed=seed) if contrast else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> SupervisedBatch:
        image, key, broken = load_or_replace(self.images, key, seed=self.seed)
        generator = rng_for(self.seed, LABELED, key.epoch, key.index, key.repeat)
        view = random_view(
            image, self.preprocessing, self.policy, generator, interpolation=self.interpolation
        )
        if self.crops is None:
            crops = torch.empty(0, *view.shape, dtype=torch.uint8)
            params = torch.empty(0, NUM_PARAMS)
        else:
            crops, params = self.crops.crops(image, key)
        numbers = self.labels[key.index], key.index, broken
        return SupervisedBatch(torch.from_numpy(view), crops, params, *numbers)  # type: ignore[arg-type]


class EvalDataset(Dataset[tuple[Tensor, int]]):
    """The image as evaluation sees it, uint8 (3, S, S), and its index.

    Args:
        images: N images.
        preprocessing: S, and how other sides are resized and cut.
        weak_seed: Random seed of a weakly augmented view instead, drawn once for each image
            (``weak_view``); None: no augmentation.
    """

    def __init__(
        self, images: ImageSet, preprocessing: Preprocessing, *, weak_seed: int | None = None
    ) -> None:
        self.images, self.preprocessing = images, preprocessing
        self.weak_seed = weak_seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images.image(index)
        if self.weak_seed is None:
            view = pixels(self.preprocessing.crop(image))
        else:
            rng = rng_for(self.weak_seed, WEAK, 0, index)
            view = weak_view(image, self.preprocessing.size, rng)
        return torch.from_numpy(view), index
