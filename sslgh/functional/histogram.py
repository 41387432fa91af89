"""How unequal the sizes of classes are.

Shapes: K classes.
"""

import torch
from torch import Tensor


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
    _check(counts)
    share = counts.double() / counts.sum()
    return -torch.xlogy(share, share).sum()


def gini(counts: Tensor) -> Tensor:
    """Gini coefficient: the mean difference between two classes over twice the mean size.

    Args:
        counts: Shape (K,), non-negative, not all 0; integer or not. Empty classes count: take them out
            to judge those in use.

    Returns:
        Shape (), float64, from 0 (equal sizes) to 1 - 1/K (all in one class).

    Raises:
        ValueError: If ``counts`` is not (K,).

    Examples:
        Of the four ordered pairs two differ, by 2; the mean size is 2, so 1 / (2 * 2):

        >>> gini(torch.tensor([3, 1]))
        tensor(0.2500, dtype=torch.float64)
    """
    _check(counts)
    share = counts.double().sort().values / counts.sum()
    rank = torch.arange(1, len(share) + 1, dtype=share.dtype, device=share.device)
    return ((2 * rank - len(share) - 1) * share).sum() / len(share)


def _check(counts: Tensor) -> None:
    if counts.ndim != 1:
        raise ValueError(f"counts must be (K,), got {tuple(counts.shape)}")
