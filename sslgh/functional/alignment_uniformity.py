"""How near the views of an image lie, and how evenly images fill the sphere.

Shapes: N samples, D embedding width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.precision import in_float32
from sslgh.functional.shapes import check_positive, check_views


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
