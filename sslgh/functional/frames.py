"""Geometric uniform structures: unit vectors as far apart as they can be.

Shapes: K vertices in D dimensions.
"""

import torch
from torch import Generator, Tensor

from sslgh.functional.checks import check_positive

# Annealed from loose to tight: the soft maximum over pairs approaches the largest cosine.
SHARPNESS = tuple(2.0**power for power in range(2, 12))
STEPS_EACH = 60


def simplex_etf(num_vertices: int, dim: int, *, generator: Generator | None = None) -> Tensor:
    """Simplex equiangular tight frame: K unit vectors with equal pairwise cosine -1/(K-1).

    Exists exactly when K <= D + 1 and is exact there, K = D + 1 included (the published
    generator, a polar factor of K vectors in D dimensions, is not). Source: the geometric
    uniform structure of GH, arXiv:2310.17622; its orientation is random.

    Args:
        num_vertices: K, at least 2.
        dim: D, at least K - 1.
        generator: Source of the random orientation, on the CPU.

    Returns:
        Shape (K, D), float32; rows sum to zero.

    Raises:
        ValueError: If K < 2 or K > D + 1.

    Examples:
        >>> vertices = simplex_etf(3, 2)
        >>> (vertices @ vertices.T).round(decimals=4)[0, 1:]
        tensor([-0.5000, -0.5000])
    """
    _check_size(num_vertices, dim)
    if num_vertices > dim + 1:
        raise ValueError(f"a simplex of {num_vertices} vectors does not fit into {dim} dimensions")
    return (_simplex(num_vertices) @ _rotation(num_vertices - 1, dim, generator)).float()


def uniform_frame(num_vertices: int, dim: int, *, generator: Generator | None = None) -> Tensor:
    """K unit vectors whose largest pairwise cosine is as small as it gets.

    * K <= D + 1: the simplex, largest cosine -1/(K-1).
    * D + 2 <= K <= 2D: the optimum is 0 (Rankin 1955), reached exactly by K - D simplices in
      orthogonal subspaces.
    * K > 2D: a local optimum, by gradient descent on the annealed soft maximum of the cosines.
      How GH builds its "approximate" structure is not published; this is ours.

    Args:
        num_vertices: K, at least 2.
        dim: D, at least 2 where K > 2.
        generator: Source of the random orientation and start, on the CPU.

    Returns:
        Shape (K, D), float32.

    Raises:
        ValueError: If K < 2, D < 1, or D = 1 with K > 2.

    Examples:
        Four vectors in the plane form a square:

        >>> vertices = uniform_frame(4, 2)
        >>> (vertices @ vertices.T).round(decimals=4).sort().values[0].abs()
        tensor([1., 0., 0., 1.])
    """
    _check_size(num_vertices, dim)
    if num_vertices <= dim + 1:
        return simplex_etf(num_vertices, dim, generator=generator)
    if dim < 2:
        raise ValueError(f"{num_vertices} vectors cannot differ in {dim} dimension; use dim >= 2")
    if num_vertices <= 2 * dim:
        blocks = _orthogonal_simplices(num_vertices, dim)
        return (blocks @ _rotation(dim, dim, generator)).float()
    return _descend(num_vertices, dim, generator).float()


def _check_size(num_vertices: int, dim: int) -> None:
    check_positive(dim=dim)
    if num_vertices < 2:
        raise ValueError(f"num_vertices must be at least 2, got {num_vertices}")


def _simplex(num_vertices: int) -> Tensor:
    """The simplex in its own K - 1 dimensions: an orthonormal basis of the sum-zero space, scaled."""
    k = num_vertices
    centered = torch.eye(k, dtype=torch.float64) - 1 / k
    basis = torch.linalg.qr(centered[:, : k - 1]).Q
    simplex: Tensor = (k / (k - 1)) ** 0.5 * basis
    return simplex


def _orthogonal_simplices(num_vertices: int, dim: int) -> Tensor:
    """K - D simplices that share the D dimensions out as evenly as possible."""
    parts = num_vertices - dim
    sizes = [dim // parts + (part < dim % parts) for part in range(parts)]
    blocks: Tensor = torch.block_diag(*(_simplex(size + 1) for size in sizes))  # type: ignore[no-untyped-call]
    return blocks


def _rotation(rows: int, dim: int, generator: Generator | None) -> Tensor:
    """Random orthonormal rows (rows, D), uniform over orientations (Haar)."""
    gaussian = torch.randn(dim, rows, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(gaussian)
    rotation: Tensor = (q * r.diagonal().sign()).T
    return rotation


def _descend(num_vertices: int, dim: int, generator: Generator | None) -> Tensor:
    """Minimize the soft maximum of the cosines, ever sharper, from a random start."""
    free = torch.randn(num_vertices, dim, dtype=torch.float64, generator=generator)
    free.requires_grad_()
    optimizer = torch.optim.Adam([free])
    self_pairs = torch.eye(num_vertices, dtype=torch.bool)
    with torch.enable_grad():
        for sharpness in SHARPNESS:
            optimizer.param_groups[0]["lr"] = 0.4 / sharpness**0.7
            for _ in range(STEPS_EACH):
                unit = torch.nn.functional.normalize(free)
                cosines = (unit @ unit.T).masked_fill(self_pairs, -torch.inf)
                soft_maximum = torch.logsumexp(sharpness * cosines.flatten(), 0) / sharpness
                optimizer.zero_grad()
                soft_maximum.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return torch.nn.functional.normalize(free.detach())
