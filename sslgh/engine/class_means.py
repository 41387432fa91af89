"""A cosine classifier that starts from the mean feature of each class.

Shapes: N images, C classes, F features, S side of the input (pixels).
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslgh.classify.network import Network
from sslgh.data import ImageSet, num_workers
from sslgh.data.batch_sampler import SampleKey
from sslgh.data.image_set import load_or_replace
from sslgh.distributed import gather
from sslgh.engine.fsdp import FSDPError
from sslgh.preprocessing import Preprocessing, pixels
from sslgh.recipe import Recipe

BATCH = 128


class _Images(Dataset[tuple[Tensor, int]]):
    """Every P-th image as evaluation sees it, uint8 (3, S, S), and its label; another one for a broken one."""

    def __init__(self, images: ImageSet, view: Preprocessing, seed: int, own: range) -> None:
        self.images, self.view, self.seed, self.own = images, view, seed, own

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        key = SampleKey(0, 0, self.own[position])
        image, key, _ = load_or_replace(self.images, key, seed=self.seed)
        assert self.images.labels is not None
        return torch.from_numpy(pixels(self.view.crop(image))), int(self.images.labels[key.index])


@torch.no_grad()
def start_from_class_means(
    network: Network, images: ImageSet, recipe: Recipe, *, size: int, accelerator: Accelerator
) -> None:
    """Set the classifier to the normalized mean feature of each class (LIFT, arXiv:2309.10019, section 4.2).

    New adapters add nothing, so these are the features of the pretrained backbone. A class without images keeps its
    drawn direction. Collective: call it on every rank.

    Args:
        network: Network whose classifier is set; left in evaluation mode.
        images: N labeled images.
        recipe: Recipe, for its seed and the number of loader workers.
        size: S.
        accelerator: Device and ranks.

    Raises:
        FSDPError: With sharded weights.
    """
    if accelerator.is_fsdp2:
        raise FSDPError(
            "finetune.classifier_start: class-means writes a classifier that FSDP has cut into shards; launch without FSDP "
            "(recipes/accelerate/gpu-8.yaml)"
        )
    network.eval()
    preprocessing, weight = Preprocessing.of(network.backbone).at(size), network.classifier.weight
    own = range(accelerator.process_index, len(images), accelerator.num_processes)
    workers = num_workers(recipe.data, in_memory=images.in_memory)
    loader = DataLoader(
        _Images(images, preprocessing, recipe.seed, own), BATCH, num_workers=workers
    )
    sums = torch.zeros_like(weight)
    for batch, labels in loader:
        features = network.backbone(preprocessing.normalize(batch.to(weight.device)))
        sums.index_add_(0, labels.to(weight.device), features.to(sums.dtype))
    means = F.normalize(gather(sums[None])[0].sum(0))
    weight.copy_(torch.where(means.any(1, keepdim=True), means, weight))
