"""Dataset for supervised training: one view for the classifier, two for a contrast."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslgh.data.augment import NUM_DRAWS
from sslgh.data.broken_images import load_or_replace
from sslgh.data.datasets import PretrainDataset
from sslgh.data.image_set import ImageSet
from sslgh.data.rng import LABELED, rng_for
from sslgh.data.supervised_augment import Policy, random_view
from sslgh.recipe.data import Augment


class SupervisedDataset(Dataset[tuple[Tensor, Tensor, Tensor, int, int, int]]):
    """A view by the policy, the two crops of ``PretrainDataset``, the label and the index.

    Item ``(epoch, index)`` is uint8 (3, S, S), uint8 (V, 3, S, S), float32 (V, ``NUM_DRAWS``), label,
    index and -1; V is 2, or 0 without contrast. It depends on the seed, the epoch and the index alone,
    and the crops are those of self-supervised training. ``normalize`` readies the view for the
    network, ``augment_views`` the crops.

    An image that cannot be read is replaced as ``load_or_replace`` says: the item then holds label and
    index of the substitute, and in the last place the index that was asked for.

    Args:
        images: The training set, with labels.
        augment: Of the two crops.
        size: S (pixels).
        seed: Of the run.
        policy: Of the view.
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

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
        image, key, broken = load_or_replace(self.images, key, seed=self.seed)
        epoch, index = key
        generator = rng_for(self.seed, LABELED, epoch, index)
        view = random_view(image, self.size, self.policy, generator)
        if self.crops is None:
            crops = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
            random_params = torch.empty(0, NUM_DRAWS)
        else:
            crops, random_params = self.crops.crops(image, key)
        return torch.from_numpy(view), crops, random_params, self.labels[index], index, broken
