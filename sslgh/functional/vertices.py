"""Scores of embeddings on the vertices of a geometric uniform structure."""

import torch
from torch import Tensor

from sslgh.functional.checks import in_float32

# Rows shorter than this have no direction: scores of 0 without gradient, where 1 / length would be 1e12.
SHORTEST = 1e-6


@in_float32
def vertex_scores(z: Tensor, vertices: Tensor) -> Tensor:
    """Normalized projections on the vertices, as GH's official code takes them.

    normalize(z V^T) over K: the cosine inside the span of the vertices. What lies outside
    the span (29 of 128 dimensions for K = 100) does not count, unlike in the cosine with z
    that eq. 2 of arXiv:2310.17622 is recalled to use; we follow the code.

    Args:
        z: Embeddings, shape (N, D), of any length.
        vertices: Unit vectors, shape (K, D).

    Returns:
        Shape (N, K), rows of unit length; zeros, without gradient, for a row that is zero inside the span.

    Raises:
        ValueError: If the widths differ.

    Examples:
        >>> vertex_scores(torch.tensor([[3.0, 4.0, 9.0]]), torch.eye(3)[:2])
        tensor([[0.6000, 0.8000]])
    """
    if z.ndim != 2 or vertices.ndim != 2 or z.shape[1] != vertices.shape[1]:
        raise ValueError(
            f"expected z (N, D) and vertices (K, D), got {tuple(z.shape)} and {tuple(vertices.shape)}"
        )
    projections = z @ vertices.to(z.dtype).T
    length = projections.norm(dim=1, keepdim=True)
    scores: Tensor = projections / length.clamp(min=SHORTEST)
    return torch.where(length <= SHORTEST, 0, scores)
