"""How pure clusters are, and how unequal the sizes of classes are.

Shapes: N samples, K classes.
"""

import torch
from torch import Tensor

from sslgh.functional.checks import with_float64


@with_float64
def purity(clusters: Tensor, classes: Tensor) -> Tensor:
    """Share of the samples that belong to the commonest class of their cluster.

    It rises with the number of clusters, up to 1 for one cluster per sample, and is never below the
    share of the largest class.

    Args:
        clusters: Shape (N,), non-negative integers.
        classes: Shape (N,), likewise.

    Returns:
        Shape (), float64. Waits for the device.

    Raises:
        ValueError: If the shapes differ, there is no sample or a label is negative.

    Examples:
        One of four samples is in a cluster of another class:

        >>> purity(torch.tensor([0, 0, 1, 1]), torch.tensor([3, 3, 3, 8]))
        tensor(0.7500, dtype=torch.float64)
    """
    if clusters.shape != classes.shape or clusters.ndim != 1 or len(clusters) == 0:
        raise ValueError(
            f"two labelings must share a shape (N,), N > 0, got {tuple(clusters.shape)} and {tuple(classes.shape)}"
        )
    if min(clusters.min(), classes.min()) < 0:
        raise ValueError("labels must not be negative; leave out the samples without a label")
    cluster, name = (torch.unique(c, return_inverse=True)[1] for c in (clusters, classes))
    width = int(name.max()) + 1
    pairs = torch.bincount(cluster * width + name, minlength=width * (int(cluster.max()) + 1))
    return pairs.view(-1, width).max(1).values.sum().double() / len(classes)


@with_float64
def entropy(counts: Tensor) -> Tensor:
    """Entropy of the shares in nats, not normalized: exp(entropy) classes of one size have it.

    Args:
        counts: Shape (K,), non-negative, not all 0; integer or not. Empty classes change nothing.

    Returns:
        Shape (), float64, from 0 (all in one class) to log K.

    Raises:
        ValueError: If ``counts`` is not (K,).

    Examples:
        >>> entropy(torch.tensor([7, 7, 0])).exp()
        tensor(2., dtype=torch.float64)
    """
    _check_counts(counts)
    share = counts.double() / counts.sum()
    return -torch.xlogy(share, share).sum()


@with_float64
def gini(counts: Tensor) -> Tensor:
    """Gini coefficient: the mean difference between two classes over twice the mean size.

    Args:
        counts: Shape (K,), non-negative, not all 0; integer or not. Empty classes count: remove them
            to describe only the classes in use.

    Returns:
        Shape (), float64, from 0 (equal sizes) to 1 - 1/K (all in one class).

    Raises:
        ValueError: If ``counts`` is not (K,).

    Examples:
        Of the four ordered pairs two differ, by 2; the mean size is 2, so 1 / (2 * 2):

        >>> gini(torch.tensor([3, 1]))
        tensor(0.2500, dtype=torch.float64)
    """
    _check_counts(counts)
    share = counts.double().sort().values / counts.sum()
    rank = torch.arange(1, len(share) + 1, dtype=share.dtype, device=share.device)
    return ((2 * rank - len(share) - 1) * share).sum() / len(share)


def _check_counts(counts: Tensor) -> None:
    if counts.ndim != 1:
        raise ValueError(f"counts must be (K,), got {tuple(counts.shape)}")
