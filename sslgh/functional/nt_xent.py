"""SimCLR's contrastive loss, per sample, with negatives from all ranks.

Shapes: N images here, M over all ranks, D embedding width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_positive, check_views, in_float32

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""Stacks (N, ...) over all ranks to (M, ...) with gradient; returns the first local row."""


@in_float32
def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float, gather: Gather | None = None) -> Tensor:
    """Normalized temperature-scaled cross-entropy (SimCLR, eq. 1, arXiv:2002.05709).

    Row i of ``z1`` and row i of ``z2`` embed the same image; every other row of either view, on any rank, is a
    negative. Shape (N,): for each image the mean over its two anchors. The caller weighs and averages.

    Args:
        z1: First view, shape (N, D). Need not be normalized.
        z2: Second view, shape (N, D).
        temperature: Divides the cosine similarities; positive.
        gather: Stacks a tensor over all ranks, with gradient, and returns this rank's first row; None: one rank alone.

    Raises:
        ValueError: If the views differ in shape or ``temperature`` is not positive.

    Examples:
        Of two identical images each of the 3 candidates is equally likely, so that the loss is log 3:

        >>> nt_xent(torch.ones(2, 8), torch.ones(2, 8), temperature=0.5)
        tensor([1.0986, 1.0986])
    """
    check_views(z1, z2)
    check_positive(temperature=temperature)
    local = torch.cat([F.normalize(z1), F.normalize(z2)], dim=1)  # (N, 2D): one collective for both
    gathered, first = gather(local) if gather else (local, 0)
    candidates = torch.cat(gathered.chunk(2, dim=1))  # (2M, D)
    anchors = torch.cat(local.chunk(2, dim=1))  # (2N, D)
    row = torch.arange(first, first + len(z1), device=z1.device)
    itself = torch.cat([row, row + len(gathered)])
    positive = itself.roll(len(z1))
    # Dividing the anchors and masking in place spare two passes over the (2N, 2M) logits.
    logits = (anchors / temperature) @ candidates.T
    logits.scatter_(1, itself[:, None], -torch.inf)
    return F.cross_entropy(logits, positive, reduction="none").view(2, -1).mean(0)
