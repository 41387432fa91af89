"""How well two labelings of the same samples agree, whatever their labels are called.

Shapes: N samples.
"""

import torch
from torch import Tensor

from sslgh.functional.histogram import entropy


def normalized_mutual_information(first: Tensor, second: Tensor) -> Tensor:
    """Mutual information over the mean of the two entropies (scikit-learn's default).

    Args:
        first: Shape (N,), non-negative integers.
        second: Shape (N,), likewise.

    Returns:
        Shape (), float64: 1 where each labeling tells the other, 0 where one tells nothing of the other.
        1 if both are a single class. Waits for the device.

    Raises:
        ValueError: If the shapes differ, there is no sample or a label is negative.

    Examples:
        The names do not matter; a labeling crossed with another tells nothing of it:

        >>> first = torch.tensor([0, 0, 1, 1])
        >>> normalized_mutual_information(first, torch.tensor([5, 5, 2, 2]))
        tensor(1., dtype=torch.float64)
        >>> normalized_mutual_information(first, torch.tensor([0, 1, 0, 1]))
        tensor(0., dtype=torch.float64)
    """
    table = _contingency(first, second)
    rows, columns = entropy(table.sum(1)), entropy(table.sum(0))
    information = rows + columns - entropy(table.flatten())
    mean = (rows + columns) / 2
    return (information / mean).clamp(0, 1) if mean > 0 else torch.ones_like(mean)


def purity(clusters: Tensor, classes: Tensor) -> Tensor:
    """Share of the samples that belong to the commonest class of their cluster.

    It rises with the number of clusters, up to 1 for one a sample, and is never below the share of the
    largest class.

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
    return _contingency(clusters, classes).max(1).values.sum().double() / len(classes)


def _contingency(first: Tensor, second: Tensor) -> Tensor:
    """How many samples have each pair of labels; labels without samples are left out."""
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(
            f"two labelings must share a shape (N,), N > 0, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if min(first.min(), second.min()) < 0:
        raise ValueError("labels must not be negative; leave out the samples without a label")
    first, second = (torch.unique(labels, return_inverse=True)[1] for labels in (first, second))
    width = int(second.max()) + 1
    pairs = torch.bincount(first * width + second, minlength=width * (int(first.max()) + 1))
    return pairs.view(-1, width)
