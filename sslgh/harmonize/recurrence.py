"""Are the clusters of a population real? They recur over resamples, more than those of a Gaussian do.

Every finder of clusters finds some, and the number of samples alone does not say whether they are kinds
or cuts through one cloud. A cut through a cloud moves when some samples are left out; a gap stays. What
also stays is a cut across a direction along which everything is stretched, so the same is measured on
Gaussian noise of the same covariance.

Shapes: N samples, F width, R resamples.
"""

import math
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information
from torch import Tensor

# Each resample leaves out another fifth: every sample is in four of five, every pair of resamples shares 60 %.
RESAMPLES = 5
# Noise of one draw is averaged over its pairs of resamples, as the data's is over ten.
NOISE_RESAMPLES = 3

Partition = Callable[[Tensor, int], Tensor]


class Recurrence(NamedTuple):
    """Result of clustering a population again and again.

    Attributes:
        log_share: Mean logarithm of the share of a sample's cluster over the resamples that hold it, shape
            (N,). Where clusters do not recur, it is nearly the same for all.
        recurring: Information (nats) that two resamples share about the clusters, beyond chance; its
            exponential is the effective number of clusters that recur.
        noise: The same of Gaussian noise of the same covariance.
        visibility: 1 - exp(noise - recurring), at least 0: share of the recurring clusters that noise of
            the same covariance does not have.
    """

    log_share: Tensor
    recurring: float
    noise: float
    visibility: float


def recurrence(embeddings: Tensor, partition: Partition, *, seed: int) -> Recurrence:
    """Cluster resamples of embeddings (N, F), and of noise like them; labels are never needed.

    Args:
        embeddings: Directions, shape (N, F), N >= 5, finite, centered.
        partition: Clusters rows (n, F) with a seed: labels (n,) from 0.
        seed: Seed of the resamples; the same arguments give the same bits.

    Examples:
        Two far groups recur; one cloud does not:

        >>> halves = lambda rows, seed: (rows[:, 0] > 0).long()
        >>> rows = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]]).repeat(25, 1)
        >>> round(math.exp(recurrence(rows, halves, seed=0).recurring), 1)
        2.0
    """
    partitions = _partitions(embeddings, partition, RESAMPLES, seed)
    recurring = shared_information(partitions)
    noise = _partitions(gaussian_like(embeddings, seed), partition, NOISE_RESAMPLES, seed)
    by_chance = shared_information(noise)
    log_share = torch.stack([_log_shares(labels) for labels in partitions]).nanmean(0)
    visibility = max(0.0, 1 - math.exp(by_chance - recurring))
    return Recurrence(log_share, recurring, by_chance, visibility)


def _partitions(rows: Tensor, partition: Partition, count: int, seed: int) -> list[Tensor]:
    """Labels (N,) of ``count`` resamples, -1 for the fifth that each leaves out."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    found = []
    for turn, left_out in enumerate(order.tensor_split(RESAMPLES)[:count]):
        labels = torch.full((len(rows),), -1)
        kept = torch.ones(len(rows), dtype=torch.bool)
        kept[left_out] = False
        labels[kept] = partition(rows[kept], seed + turn).cpu()
        found.append(labels)
    return found


def shared_information(partitions: list[Tensor]) -> float:
    """Mean mutual information (nats) of two partitions (N,) of the samples that both hold, beyond chance.

    The expectation for labels in any order is subtracted (Vinh et al., JMLR 2010), so that many small
    clusters do not look alike by their number.

    Examples:
        >>> same = torch.tensor([0, 1]).repeat(50)
        >>> round(shared_information([same, 1 - same]), 2), round(math.log(2), 2)
        (0.69, 0.69)
    """
    values = []
    for first, second in combinations(partitions, 2):
        both = (first >= 0) & (second >= 0)
        table = contingency_matrix(first[both].numpy(), second[both].numpy(), sparse=True)
        chance = expected_mutual_information(table, int(both.sum()))
        values.append(mutual_info_score(None, None, contingency=table) - chance)
    return float(np.mean(values))


def gaussian_like(embeddings: Tensor, seed: int) -> Tensor:
    """As many directions (N, F), drawn from the Gaussian with the covariance of the embeddings."""
    rows = embeddings.double()
    rows = rows - rows.mean(0)
    variance, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows.shape, dtype=torch.float64, generator=generator)
    return F.normalize((drawn * variance.clamp(min=0).sqrt() @ axes.T).float(), dim=1)


def _log_shares(labels: Tensor) -> Tensor:
    """Logarithm of the share of each sample's cluster, shape (N,); nan where the sample was left out."""
    held = labels >= 0
    counts = torch.bincount(labels[held])
    shares = (counts / counts.sum()).log()
    return torch.where(held, shares[labels.clamp(min=0)], torch.nan)
