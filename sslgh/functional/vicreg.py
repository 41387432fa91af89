"""VICReg's loss, on moments in which the instance weights are frequencies.

Shapes: N images here, M over all ranks, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.barlow_twins import global_views, off_diagonal
from sslgh.functional.checks import check_positive, in_float32
from sslgh.functional.nt_xent import Gather


@in_float32
def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    weights: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Variance-invariance-covariance regularization (VICReg, eq. 6, arXiv:2105.04906).

    Where the paper and its code differ we follow the code, as lightly does: the invariance term is
    a mean over the axes too (eq. 5 sums them), and the variance term is the mean over the two
    views (eq. 6 adds them). Variance and covariance have n - 1 below the sum. A weight is a
    frequency, n the sum of the weights: weight 2 is the image twice in the batch.

    Args:
        z1: First view, shape (N, D), not normalized.
        z2: Second view, shape (N, D).
        invariance: Weight of the mean squared distance of the views.
        variance: Weight of the hinge that holds the standard deviation of each axis at 1.
        covariance: Weight of the squared covariances of different axes.
        eps: Added to a variance before its root.
        weights: Instance weights, shape (N,), non-negative; None: all ones. Real weights of which
            fewer than two images are left (a sum below 2) take 1 for n - 1.
        gather: Stacks a tensor over all ranks, with gradient; see :func:`nt_xent`. None: this
            rank alone.

    Returns:
        Shape (): the loss of the global batch, the same number on every rank. With a `gather`
        whose backward sums over ranks, DDP's mean of the gradients is that of one rank.

    Raises:
        ValueError: If the views differ in shape, the weights are not (N,), ``eps`` is not positive or
            the global batch holds fewer than two images.

    Examples:
        Views that agree, spread beyond 1 on both axes, and two axes that always agree, of
        variance 8: their covariance counts twice over D in each view, 64 + 64.

        >>> z = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
        >>> vicreg(z, z)
        tensor(128.)
    """
    check_positive(eps=eps)
    z1, z2, weights = global_views(z1, z2, weights, gather)
    if len(z1) < 2:
        raise ValueError(f"a variance needs a batch of 2 images or more, got {len(z1)}")
    total = weights.sum()
    share = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
    distance = share @ (z1 - z2).square().mean(1)
    spread, redundancy = z1.new_zeros(()), z1.new_zeros(())
    for z in (z1, z2):
        centered = z - share @ z
        scaled = centered * (weights / (total - 1).clamp(min=1))[:, None]
        deviation = ((scaled * centered).sum(0) + eps).sqrt()
        spread = spread + F.relu(1 - deviation).mean() / 2
        redundancy = redundancy + off_diagonal(scaled.T @ centered).square().sum() / z.shape[1]
    return invariance * distance + variance * spread + covariance * redundancy
