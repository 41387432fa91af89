"""Geometry of embeddings: how views agree, images spread, classes lie apart, and how many directions are used.

Shapes: N samples, C classes, D embedding width. Only directions count, but for `effective_rank`.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.checks import check_positive, check_views, in_float32, shapes, with_float64


@in_float32
def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean squared distance of two views (N, D) on the sphere, shape () (arXiv:2005.10242, section 4.1, alpha 2).

    From 0 (views agree) to 4 (opposite). ValueError if the views differ in shape.

    Examples:
        One image whose views are at a right angle, one whose views agree:

        >>> alignment(torch.eye(2), torch.tensor([[0.0, 3.0], [0.0, 2.0]]))
        tensor(1.)
    """
    check_views(z1, z2)
    return (normalize(z1) - normalize(z2)).square().sum(1).mean()


@in_float32
def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian potential of two images z (N, D), shape () (arXiv:2005.10242, section 4.1).

    log mean exp(-t |z_i - z_j|^2), from -4t (two opposite points) to 0 (one point); near -2t for images spread
    evenly in many dimensions. ValueError if there is no pair, or ``t`` is not positive.

    Examples:
        >>> uniformity(torch.eye(2))  # a right angle: squared distance 2
        tensor(-4.)
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"expected embeddings (N, D) of at least two images, got {shapes(z)}")
    check_positive(t=t)
    z = normalize(z)
    exponents = 2 * t * (z @ z.T - 1)
    exponents.fill_diagonal_(-torch.inf)
    return exponents.flatten().logsumexp(0) - math.log(len(z) * (len(z) - 1))


@in_float32
def inter_class_uniformity(means: Tensor) -> Tensor:
    """Mean distance of every class mean (C, D) to the others, shape (C,), from 0 to 2; larger is better.

    Its mean is U = 1/(C(C-1)) sum_i sum_{j != i} |m_i - m_j| of GH (arXiv:2310.17622) and TSC (arXiv:2111.13998),
    recalled, not read: that the means lie on the sphere is TSC's as we remember it. ValueError for C < 2.

    Examples:
        >>> inter_class_uniformity(torch.tensor([[2.0, 0.0], [-1.0, 3**0.5], [-1.0, -(3**0.5)]]))
        tensor([1.7321, 1.7321, 1.7321])
    """
    return _distances(means).sum(1) / (len(means) - 1)


@in_float32
def neighborhood_uniformity(means: Tensor, neighbors: int) -> Tensor:
    """Mean distance of every class mean (C, D) to its k nearest ``neighbors``, shape (C,), from 0 to 2.

    Its mean is U_k = 1/(Ck) sum_i min_{j_1..j_k} sum_l |m_i - m_{j_l}|, recalled like `inter_class_uniformity`.
    ValueError unless 1 <= k < C.

    Examples:
        >>> neighborhood_uniformity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 1)
        tensor([0.0000, 0.0000, 1.4142])
    """
    distances, most = _distances(means), len(means) - 1
    if not 1 <= neighbors <= most:
        raise ValueError(f"neighbors must lie in 1..{most}, all classes but one, got {neighbors}")
    distances.fill_diagonal_(torch.inf)
    return distances.topk(neighbors, dim=1, largest=False).values.mean(1)


def _distances(means: Tensor) -> Tensor:
    if means.ndim != 2 or len(means) < 2:
        raise ValueError(f"expected the means (C, D) of at least two classes, got {shapes(means)}")
    means = normalize(means)
    # Not by a matrix product, which leaves 3e-4 between classes that are one point.
    return torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
@in_float32
@with_float64
def effective_rank(z: Tensor) -> Tensor:
    """Exponential of the entropy of the normalized singular values of z (N, D) (RankMe, arXiv:2210.02885).

    Shape (), from 1 (one direction, or zeros) to min(N, D); nan where a row is not finite. As in the paper rows are
    neither centered nor normalized, but 0 log 0 is 0 instead of adding 1e-7. On CUDA this waits for the device.
    ValueError if N or D is 0.

    Examples:
        Two axes used equally, then as 4 to 1: the entropy of 4/5 and 1/5 is log 5 - 4/5 log 4.

        >>> effective_rank(torch.eye(3)[[0, 0, 1, 1]])
        tensor(2.)
        >>> effective_rank(torch.tensor([[4.0, 0.0], [0.0, 1.0]])), 5 / 4**0.8
        (tensor(1.6494), 1.6493848884661177)
    """
    if z.ndim != 2 or z.numel() == 0:
        raise ValueError(f"expected embeddings (N, D) with N, D > 0, got {shapes(z)}")
    finite = z.isfinite().all()
    # The solver would raise for nan; squares in float32 leave noise of 3e-4 in every empty direction.
    z = torch.where(finite, z, 0).double()
    gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.xlogy(share, share).sum().neg().exp().float().where(finite, torch.nan)
