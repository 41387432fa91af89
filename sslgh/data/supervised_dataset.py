"""Dataset for supervised training: one view for the classifier, two for a contrast."""

import torch
from torch.utils.data import Dataset

from sslgh.data.augment import NUM_PARAMS
from sslgh.data.batch_sampler import SampleKey
from sslgh.data.broken_images import load_or_replace
from sslgh.data.datasets import PretrainDataset, SupervisedBatch
from sslgh.data.image_set import ImageSet
from sslgh.data.rng import LABELED, rng_for
from sslgh.data.supervised_augment import random_view
from sslgh.recipe.data import Augment
from sslgh.recipe.finetune import Policy


class SupervisedDataset(Dataset[SupervisedBatch]):
    """A view by the policy, the two crops of ``PretrainDataset``, the label and the index.

    A sample depends on the seed and its ``SampleKey`` alone, and the crops are those of self-supervised
    training. An image that cannot be read is replaced by ``load_or_replace``; label and index are then
    those of the replacement.

    Args:
        images: The training set, with labels.
        augment: Settings of the two crops.
        size: S (pixels).
        seed: Random seed of the run.
        policy: Augmentation of the view.
        contrast: Whether the crops are wanted.

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
    ) -> None:
        if images.labels is None:
            raise ValueError("supervised training needs labels, and this set of images has none")
        self.images = images
        self.labels: list[int] = images.labels.tolist()
        self.size = size
        self.seed = seed
        self.policy: Policy = policy
        self.crops = PretrainDataset(images, augment, size=size, seed=seed) if contrast else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> SupervisedBatch:
        image, key, broken = load_or_replace(self.images, key, seed=self.seed)
        generator = rng_for(self.seed, LABELED, key.epoch, key.index, key.repeat)
        view = torch.from_numpy(random_view(image, self.size, self.policy, generator))
        if self.crops is None:
            crops = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
            params = torch.empty(0, NUM_PARAMS)
        else:
            crops, params = self.crops.crops(image, key)
        target = self.labels[key.index]
        return SupervisedBatch(view, crops, params, *map(torch.tensor, (target, key.index, broken)))
