"""How near the views of an image lie, how evenly images fill the sphere, and how far apart classes lie.

Shapes: N samples, C classes, D embedding width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.checks import check_positive, check_views, in_float32


@in_float32
def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean squared distance of the two views of an image on the sphere (arXiv:2005.10242, section 4.1, alpha 2).

    Args:
        z1: First view, shape (N, D). Need not be normalized.
        z2: Second view, shape (N, D).

    Returns:
        Shape (), from 0 (views agree) to 4 (opposite).

    Raises:
        ValueError: If the views differ in shape.

    Examples:
        One image whose views are at a right angle, one whose views agree:

        >>> alignment(torch.eye(2), torch.tensor([[0.0, 3.0], [0.0, 2.0]]))
        tensor(1.)
    """
    check_views(z1, z2)
    return (normalize(z1) - normalize(z2)).square().sum(1).mean()


@in_float32
def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian potential of two images on the sphere (arXiv:2005.10242, section 4.1).

    log mean exp(-t |z_i - z_j|^2) over the N(N-1)/2 pairs of different images; the smaller, the more
    evenly they are spread. For many images spread uniformly over a sphere of many dimensions it
    comes near -2t.

    Args:
        z: Shape (N, D), N at least 2. Need not be normalized.
        t: The paper's t; positive.

    Returns:
        Shape (), from -4t (two opposite points) to 0 (all in one point).

    Raises:
        ValueError: If there is no pair, or ``t`` is not positive.

    Examples:
        Two images at a right angle, squared distance 2:

        >>> uniformity(torch.eye(2))
        tensor(-4.)
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"expected embeddings (N, D) of at least two images, got {tuple(z.shape)}")
    check_positive(t=t)
    z = normalize(z)
    exponents = 2 * t * (z @ z.T - 1)
    exponents.fill_diagonal_(-torch.inf)
    return exponents.flatten().logsumexp(0) - math.log(len(z) * (len(z) - 1))


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
