"""Focal loss: easy samples count less.

Shapes: N samples, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_labels, check_prior, in_float32


@in_float32
def focal_cross_entropy(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Focal loss over the softmax (eq. 4 and 5 of arXiv:1708.02002, which takes sigmoids).

    -alpha_y (1 - p_y)^gamma log p_y, p the softmax of the logits.

    Args:
        logits: Shape (N, C). A column of -inf leaves the softmax.
        target: Classes y, shape (N,), in [0, C).
        gamma: Focus; 0 is cross-entropy.
        weight: alpha, shape (C,).

    Returns:
        Shape (N,).

    Raises:
        ValueError: If shapes do not fit or ``gamma`` is negative.

    Examples:
        A coin toss: (1/2)^2 log 2.

        >>> focal_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.1733])
    """
    check_labels(logits, target)
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    local = logits.gather(1, target[:, None])
    rivals = logits.scatter(1, target[:, None], -torch.inf)
    # Fills what is -inf already: logsumexp of nothing else has a gradient of nan.
    rivals = rivals.masked_fill(rivals == -torch.inf, -torch.inf)
    lead = (rivals.logsumexp(1) - local[:, 0]).clamp(min=torch.finfo(logits.dtype).min)
    # log p and log(1 - p) without p, which rounds to 1, where 1 - p and its powers end.
    loss = -torch.exp(gamma * F.logsigmoid(lead)) * F.logsigmoid(-lead)
    if weight is None:
        return loss
    check_prior(weight, logits.shape[1])
    return weight[target] * loss
