"""The two views of an image against each other, and against all other images.

Shapes: N images here, M over all ranks, D embedding width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_positive, check_views
from sslgh.functional.nt_xent import Gather


class Pairs(NamedTuple):
    """Similarities of the two views of each image, as anchors.

    Attributes:
        positive: Similarity of the two views, shape (N,), divided by the temperature.
        negatives: Log of the summed exponentials over all views of other images, shape (2, N):
            one row per anchor; -inf where there is no other image.
        cosines: Cosine of the two views of every image on any rank, shape (M,), without gradient.
        first: Which of the M is this rank's first.
    """

    positive: Tensor
    negatives: Tensor
    cosines: Tensor
    first: int


def contrast_pairs(
    z1: Tensor, z2: Tensor, *, temperature: float, gather: Gather | None = None
) -> Pairs:
    """Positives and negatives of NT-Xent, kept apart.

    Args:
        z1: First view, shape (N, D), of any length.
        z2: Second view, shape (N, D).
        temperature: Divides the cosine similarities; positive.
        gather: Stacks a tensor over all ranks, with gradient, and returns which row is this
            rank's first. None: this rank alone.

    Raises:
        ValueError: If the views differ in shape or ``temperature`` is not positive.
    """
    check_views(z1, z2)
    check_positive(temperature=temperature)
    local = torch.cat([F.normalize(z1), F.normalize(z2)], dim=1)  # (N, 2D): one collective for both
    gathered, first = gather(local) if gather else (local, 0)
    u1, u2 = gathered.chunk(2, dim=1)
    anchors = torch.cat(local.chunk(2, dim=1))  # (2N, D)
    logits = (anchors / temperature) @ torch.cat([u1, u2]).T
    row = torch.arange(first, first + len(z1), device=z1.device).repeat(2)
    logits.scatter_(1, torch.stack([row, row + len(gathered)], dim=1), -torch.inf)
    positive = (anchors[: len(z1)] * anchors[len(z1) :]).sum(1) / temperature
    cosines = (u1 * u2).sum(1).detach()
    return Pairs(positive, logits.logsumexp(1).view(2, -1), cosines, first)
