"""Barlow Twins' loss, on moments in which the instance weights are frequencies.

Shapes: N images here, M over all ranks, D embedding width.
"""

import torch
from torch import Tensor

from sslgh.functional.checks import check_positive, check_views, in_float32
from sslgh.functional.nt_xent import Gather

# Of the batch norm without scale and shift in the paper's code, inside the root.
EPSILON = 1e-5


@in_float32
def barlow_twins(
    z1: Tensor,
    z2: Tensor,
    *,
    lambd: float,
    weights: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Pull the cross-correlation of two views to the identity (Barlow Twins, eq. 1, arXiv:2103.03230).

    The axes are standardized over the global batch as the paper's code does it: centered, divided by
    the root of the biased variance plus 1e-5. (Eq. 2 has neither the centering nor the 1e-5.)
    A weight is a frequency: weight 2 is the image twice in the batch. Only shares of
    their sum enter, so a common factor of the weights changes nothing.

    Args:
        z1: First view, shape (N, D), of any length.
        z2: Second view, shape (N, D).
        lambd: Weight of the redundancy term, the off-diagonal entries; positive.
        weights: Instance weights, shape (N,), non-negative; None: all ones.
        gather: Stacks a tensor over all ranks, with gradient; see :func:`nt_xent`. None: this
            rank alone.

    Returns:
        Shape (): the loss of the global batch, the same number on every rank. With a `gather`
        whose backward sums over ranks, DDP's mean of the gradients is that of one rank.

    Raises:
        ValueError: If the views differ in shape, the weights are not (N,) or ``lambd`` is not positive.

    Examples:
        Two axes that never differ are wholly redundant: all four entries are 1.

        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> barlow_twins(z, z, lambd=0.25)
        tensor(0.5000)
    """
    check_positive(lambd=lambd)
    z1, z2, weights = global_views(z1, z2, weights, gather)
    total = weights.sum()
    share = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
    correlation = _standardized(z1, share).T @ (share[:, None] * _standardized(z2, share))
    invariance = (correlation.diagonal() - 1).square().sum()
    return invariance + lambd * off_diagonal(correlation).square().sum()


def global_views(
    z1: Tensor, z2: Tensor, weights: Tensor | None, gather: Gather | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both views (M, D), with gradient, and the weights (M,) of all ranks by one collective.

    Raises:
        ValueError: If the views differ in shape or the weights are not (N,).
    """
    check_views(z1, z2)
    if weights is None:
        weights = z1.new_ones(len(z1))
    if weights.shape != z1.shape[:1]:
        raise ValueError(
            f"weights must have shape ({len(z1)},), one per image, got {tuple(weights.shape)}"
        )
    local = torch.cat([z1, z2, weights.detach().to(z1.dtype)[:, None]], dim=1)
    gathered = gather(local)[0] if gather else local
    width = z1.shape[1]
    return gathered[:, :width], gathered[:, width:-1], gathered[:, -1].detach()


def off_diagonal(square: Tensor) -> Tensor:
    """All entries of a (D, D) matrix but its diagonal, shape (D - 1, D), without a copy of it."""
    width = len(square)
    return square.flatten()[:-1].view(width - 1, width + 1)[:, 1:]


def _standardized(z: Tensor, share: Tensor) -> Tensor:
    centered = z - share @ z
    return centered * (share @ centered.square() + EPSILON).rsqrt()
