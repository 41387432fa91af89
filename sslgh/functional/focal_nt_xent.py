"""Focal contrastive loss: pairs that are found already count less.

Shapes: N images here, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import in_float32
from sslgh.functional.nt_xent import Gather
from sslgh.functional.nt_xent_parts import contrast_pairs


@in_float32
def focal_nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    gamma: float = 2.0,
    gather: Gather | None = None,
) -> Tensor:
    """NT-Xent times (1 - p)^gamma: the focal loss (arXiv:1708.02002, eq. 4) over a batch.

    -(1 - p)^gamma log p, p the probability that NT-Xent gives the other view of the image. The
    gradient flows through the factor too, as in the code of GH, where this is a baseline.

    Args:
        z1: First view, shape (N, D). Need not be normalized.
        z2: Second view, shape (N, D).
        temperature: Divides the cosine similarities; positive.
        gamma: Focus; 0 is NT-Xent.
        gather: Stacks a tensor over all ranks, with gradient, and returns which row is this
            rank's first. None: this rank alone.

    Returns:
        Shape (N,): for each image the mean over its two anchors.

    Raises:
        ValueError: If the views differ in shape, ``temperature`` is not positive or ``gamma``
            is negative.

    Examples:
        Two identical images: each of the 3 candidates has p = 1/3, and the loss is 4/9 log 3.

        >>> same = torch.ones(2, 8)
        >>> focal_nt_xent(same, same, temperature=0.5)
        tensor([0.4883, 0.4883])
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    pairs = contrast_pairs(z1, z2, temperature=temperature, gather=gather)
    # Finite for the only image of a batch, which has no rival: gamma may be 0.
    lead = (pairs.negatives - pairs.positive).clamp(min=torch.finfo(z1.dtype).min)
    # log p and log(1 - p) without p, which rounds to 1, where 1 - p and its powers end.
    return -(torch.exp(gamma * F.logsigmoid(lead)) * F.logsigmoid(-lead)).mean(0)
