"""The pairwise-margin family for many heads at once: one cross-entropy, a vector of margins each.

Shapes: S seeds, N samples, H heads, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.margin_rules import Margins


class StackedMargins(NamedTuple):
    """Margins and focus of H heads; see :class:`sslgh.functional.margin_rules.Margins`.

    Attributes:
        own: row + column, what the own class does not get: shape (H, C), 0 where a class left the sum.
        column: Shape (H, C).
        weight: Shape (H, C).
        focus: Focal exponents, shape (H,); None: all 0.
    """

    own: Tensor
    column: Tensor
    weight: Tensor
    focus: Tensor | None


def stacked_margins(margins: Sequence[Margins], focus: Sequence[float]) -> StackedMargins:
    """Margins of H heads as one."""
    row, column, weight = (torch.stack(parts) for parts in zip(*margins, strict=True))
    own = (row + column).where(column > -torch.inf, 0)
    exponents = weight.new_tensor(focus) if any(focus) else None
    return StackedMargins(own, column, weight, exponents)


def stacked_cross_entropy(logits: Tensor, labels: Tensor, margins: StackedMargins) -> Tensor:
    """Mean loss of every head: ``Objective.loss`` of H heads in one pass.

    Args:
        logits: Shape (S, H, C, N).
        labels: Shape (S, N).
        margins: Of the H heads.

    Returns:
        Shape (S, H).

    Examples:
        Cross-entropy, and a head whose first class has a margin of log 3:

        >>> plain = Margins(torch.zeros(2), torch.zeros(2), torch.ones(2))
        >>> wide = plain._replace(row=torch.tensor([3.0, 1.0]).log())
        >>> margins = stacked_margins([plain, wide], [0, 0])
        >>> stacked_cross_entropy(torch.zeros(1, 2, 2, 1), torch.tensor([[0]]), margins).exp()
        tensor([[2., 4.]])
    """
    target = labels[:, None].expand(-1, logits.shape[1], -1)  # (S, H, N)
    # A matrix of margins would be (H, C, C): the own class is corrected instead.
    own = margins.own[:, labels].transpose(0, 1)
    shifted = (logits + margins.column[..., None]).scatter_add(
        2, target[:, :, None], -own[:, :, None]
    )
    loss = F.cross_entropy(shifted.flatten(0, 1), target.flatten(0, 1), reduction="none")
    loss = loss.view(target.shape)
    if margins.focus is not None:
        loss = loss * (-torch.expm1(-loss)) ** margins.focus[:, None]
    return (margins.weight[:, labels].transpose(0, 1) * loss).mean(2)
