"""How far apart the classes lie.

Shapes: C classes, D embedding width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.precision import in_float32


@in_float32
def inter_class_uniformity(means: Tensor) -> Tensor:
    """Mean distance of every class to the others (GH, arXiv:2310.17622; TSC, arXiv:2111.13998).

    The papers' number is the mean over the classes, U = 1/(C(C-1)) sum_i sum_{j != i} |m_i - m_j|;
    larger is better. Their definition is recalled, not read: that the means lie on the sphere is TSC's
    as we remember it.

    Args:
        means: Class means, shape (C, D), C at least 2. Need not be normalized.

    Returns:
        Shape (C,), from 0 to 2.

    Raises:
        ValueError: If there are fewer than two classes.

    Examples:
        Three vertices of a simplex are sqrt(3) apart; the mean counts by direction only:

        >>> inter_class_uniformity(torch.tensor([[2.0, 0.0], [-1.0, 3**0.5], [-1.0, -(3**0.5)]]))
        tensor([1.7321, 1.7321, 1.7321])
    """
    return _distances(means).sum(1) / (len(means) - 1)


@in_float32
def neighborhood_uniformity(means: Tensor, neighbors: int) -> Tensor:
    """Mean distance of every class to its nearest classes (GH, arXiv:2310.17622; TSC, arXiv:2111.13998).

    The papers' number is the mean over the classes, U_k = 1/(Ck) sum_i min_{j_1..j_k} sum_l |m_i - m_{j_l}|;
    larger is better. Recalled like `inter_class_uniformity`.

    Args:
        means: Class means, shape (C, D), C at least 2. Need not be normalized.
        neighbors: k, from 1 to C - 1.

    Returns:
        Shape (C,), from 0 to 2.

    Raises:
        ValueError: If there are fewer than two classes or ``neighbors`` is out of range.

    Examples:
        Two classes share a direction, the third is at a right angle to them:

        >>> neighborhood_uniformity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 1)
        tensor([0.0000, 0.0000, 1.4142])
    """
    distances = _distances(means)
    if not 1 <= neighbors < len(means):
        raise ValueError(
            f"neighbors must lie in 1..{len(means) - 1}, all classes but one, got {neighbors}"
        )
    distances.fill_diagonal_(torch.inf)
    return distances.topk(neighbors, dim=1, largest=False).values.mean(1)


def _distances(means: Tensor) -> Tensor:
    if means.ndim != 2 or len(means) < 2:
        raise ValueError(
            f"expected the means (C, D) of at least two classes, got {tuple(means.shape)}"
        )
    means = normalize(means)
    # Not by a matrix product, which leaves 3e-4 between classes that are one point.
    return torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
