"""Metrics of the embeddings against the labels, which training never sees.

Shapes: M tracked samples, n samples of a batch, D width, C classes.
"""

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.nn.functional import normalize

from sslgh.functional import (
    inter_class_uniformity,
    neighborhood_uniformity,
    purity,
)
from sslgh.functional.groups import class_accuracy, group_means
from sslgh.functional.neighbors import nearest_neighbor_votes
from sslgh.harmonize.ema_bank import EmaBank

MAX_TRACKED = 10_000
# Votes as in Wu et al. (arXiv:1805.01978, section 3.4), with a tenth of their neighbors: the memory is
# smaller than a training set. The temperature lets the nearest decide, so that five images of a class
# can outvote fifteen of others.
NEIGHBORS, TEMPERATURE = 20, 0.1


class TrackedEmbeddings(nn.Module):
    """The latest embedding of at most 10,000 training samples, stored on rank 0.

    Every class has the same number of places, ceil(10,000 / C), and its samples are spread evenly
    over the data set; of a smaller class all samples are tracked.

    Args:
        labels: Class of every training sample, shape (N,).
        num_classes: Number of classes C.
        width: Embedding width D.
    """

    place: Tensor
    index: Tensor

    def __init__(self, labels: NDArray[np.int64], num_classes: int, width: int) -> None:
        super().__init__()
        index = _spread_evenly(labels, math.ceil(MAX_TRACKED / num_classes))[:MAX_TRACKED]
        place = torch.full((len(labels),), len(index))
        place[index] = torch.arange(len(index))
        # Both follow from the labels and need not be saved.
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("place", place, persistent=False)
        # All samples that are not tracked share a last row: to sort them out would wait for the device.
        self.memory = EmaBank(len(index) + 1, width)

    def update(self, z: Tensor, index: Tensor) -> None:
        """Store embeddings (n, D) of the samples at ``index`` (n,), once per step. Collective: call it on every rank."""
        self.memory.update(z, self.place[index], momentum=0)

    def known(self) -> tuple[Tensor, Tensor]:
        """Embeddings (M, D) of the tracked samples seen so far and their indices (M,); rank 0 only."""
        seen = self.memory.seen[:-1].nonzero().flatten()
        return self.memory.rows[seen], self.index[seen]


def _spread_evenly(labels: NDArray[np.int64], most: int) -> Tensor:
    """Positions of up to ``most`` samples of every class, spread evenly over its samples."""
    chosen = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        count = min(most, len(positions))
        chosen.append(positions[np.arange(count) * len(positions) // count])
    return torch.from_numpy(np.concatenate(chosen))


def labeled_health(
    embeddings: Tensor,
    labels: Tensor,
    groups: dict[str, Tensor],
    *,
    surrogate: Tensor | None = None,
) -> dict[str, float]:
    """KNN accuracy, class distances and agreement of the surrogate labels; waits for the device.

    Args:
        embeddings: Embeddings, shape (M, D), not necessarily normalized.
        labels: Class per embedding, shape (M,), integers in [0, C).
        groups: Masks of shape (C,) on the host, as `shot_groups` gives them for the training set.
        surrogate: Surrogate label per embedding, shape (M,); -1 for none, which counts as a class.

    Returns:
        ``knn``: accuracy of a vote of the up to 20 nearest other samples, ``knn_balanced``: mean over the
        classes; ``inter_class_uniformity`` and ``neighborhood_uniformity`` (min(10, max(1, C/10))
        nearest classes: the papers' number was not at hand), means over the classes. Each of the last
        three also with ``_many``, ``_medium``, ``_few``: over the classes of that group, whose distances
        still go to all classes. ``nmi`` and ``purity`` of the surrogate labels. What cannot be computed
        (a group without classes, fewer than two samples or classes) is left out.
    """
    num_classes = len(next(iter(groups.values())))
    values: dict[str, float] = {}
    if len(embeddings) > 1:
        values |= _neighbor_health(embeddings, labels, num_classes, groups)
        values |= _distance_health(embeddings, labels, num_classes, groups)
    if surrogate is not None and len(labels) > 0:
        values["nmi"] = mutual_information(surrogate + 1, labels)
        values["purity"] = float(purity(surrogate + 1, labels))
    return values


def _neighbor_health(
    embeddings: Tensor, labels: Tensor, num_classes: int, groups: dict[str, Tensor]
) -> dict[str, float]:
    votes = nearest_neighbor_votes(
        embeddings,
        embeddings,
        labels,
        num_classes=num_classes,
        neighbors=min(NEIGHBORS, len(embeddings) - 1),
        temperature=TEMPERATURE,
        leave_one_out=True,
    )
    predictions = votes.argmax(1)
    accuracy = class_accuracy(predictions, labels, num_classes)
    values = {"knn": float((predictions == labels).float().mean())}
    return values | _by_group("knn", accuracy, groups, gathered="knn_balanced")


def _distance_health(
    embeddings: Tensor, labels: Tensor, num_classes: int, groups: dict[str, Tensor]
) -> dict[str, float]:
    z = normalize(embeddings.float())
    present = torch.bincount(labels, minlength=num_classes).nonzero().flatten()
    if len(present) < 2:
        return {}
    sums = z.new_zeros(num_classes, z.shape[1]).index_add(0, labels, z)[present]
    nearest = min(10, max(1, len(present) // 10))
    found = {
        "inter_class_uniformity": inter_class_uniformity(sums),
        "neighborhood_uniformity": neighborhood_uniformity(sums, nearest),
    }
    values: dict[str, float] = {}
    for name, distances in found.items():
        spread = distances.new_full((num_classes,), torch.nan).index_copy(0, present, distances)
        values |= _by_group(name, spread, groups, gathered=name)
    return values


def _by_group(
    name: str, values: Tensor, groups: dict[str, Tensor], *, gathered: str
) -> dict[str, float]:
    """Means over all classes and over those of every group."""
    values = values.cpu()
    masks = {f"{name}_{group}": mask for group, mask in groups.items()}
    masks |= {gathered: torch.ones_like(values, dtype=torch.bool)}
    means = group_means(values, masks)
    return {key: mean for key, mean in means.items() if mean is not None}


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Normalized mutual information of two labelings (N,), without scikit-learn's advice on many classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(normalized_mutual_info_score(first.cpu().numpy(), second.cpu().numpy()))
