"""The Geometric Harmonization loss, and the scores on the vertices that it compares."""

import torch
from torch import Tensor

from sslgh.functional.checks import check_positive, check_views, in_float32
from sslgh.functional.sinkhorn import sinkhorn

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


@in_float32
def harmonization_loss(
    z1: Tensor,
    z2: Tensor,
    vertices: Tensor,
    prior: Tensor,
    *,
    epsilon: float = 0.05,
    temperature: float = 0.1,
    iterations: int = 300,
    tolerance: float | None = None,
) -> Tensor:
    """Pull embeddings to vertices in the proportions of the prior (GH, arXiv:2310.17622).

    Each view's surrogate labels, by Sinkhorn with the prior as class sizes, are predicted by
    the other view: the sum, not the mean, of the two cross-entropies, as in the official code.
    Not the same as one term with twice the temperature: the labels carry no gradient.

    Args:
        z1: First view, shape (N, D), of any length; several ranks pass the gathered batch.
        z2: Second view, shape (N, D).
        vertices: Geometric uniform structure, shape (K, D), unit rows.
        prior: Shares of the surrogate classes, shape (K,).
        epsilon: Regularization of Sinkhorn, 1/lambda in the paper.
        temperature: Temperature of the geometric prediction, gamma_GH in the paper.
        iterations: Iterations of Sinkhorn.
        tolerance: Tolerance of Sinkhorn; see :func:`sinkhorn`.

    Returns:
        Shape (): the loss, averaged over the samples.

    Raises:
        ValueError: If shapes do not fit or a parameter is not positive.

    Examples:
        Embeddings orthogonal to every vertex carry no information: each term is log K.

        >>> outside = torch.tensor([[0.0, 0.0, 1.0]] * 2)
        >>> harmonization_loss(outside, outside, torch.eye(3)[:2], torch.ones(2))
        tensor(1.3863)
    """
    check_views(z1, z2)
    check_positive(temperature=temperature)
    scores = torch.stack([vertex_scores(z1, vertices), vertex_scores(z2, vertices)])
    labels = sinkhorn(
        scores.detach(), prior, epsilon=epsilon, iterations=iterations, tolerance=tolerance
    )
    log_predictions = (scores / temperature).log_softmax(2)
    return -(labels.flip(0) * log_predictions).sum(2).mean(1).sum()
