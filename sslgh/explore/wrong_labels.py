"""Labels that are likely wrong, by predictions of heads that have not seen them.

Shapes: N photos, C kinds.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Suspect(NamedTuple):
    """A photo whose label is likely wrong.

    Attributes:
        row: Position among the rows.
        given: Label of the photo.
        likely: Kind that it likely is.
        confidence: Out-of-fold probability of its label.
    """

    row: int
    given: int
    likely: int
    confidence: float


def likely_wrong(probabilities: Tensor, labels: Tensor) -> list[Suspect]:
    """Photos that confident learning counts as of another kind, the least confident label first.

    The rule of the confident joint (Northcutt et al., arXiv:1911.00068, eq. 1 and 2): a kind is confident of a photo
    where its probability reaches the kind's own threshold, the mean over the photos that are labeled as it; of several
    the most probable counts. A threshold of its own keeps a kind that is rarely predicted with confidence, as rare
    ones are, from losing all its photos.

    Args:
        probabilities: Out of fold, shape (N, C).
        labels: Shape (N,). A kind without a label is never confident.

    Examples:
        >>> table = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.9, 0.1]])
        >>> [(s.row, s.given, s.likely) for s in likely_wrong(table, torch.tensor([0, 0, 1, 1]))]
        [(3, 1, 0)]
    """
    counts = torch.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities.gather(1, labels[:, None])[:, 0]
    thresholds = torch.zeros_like(probabilities[0]).index_add(0, labels, own) / counts
    confident = probabilities.where(probabilities >= thresholds, -torch.inf)  # nan is never reached
    likely = confident.argmax(1)
    wrong = confident.isfinite().any(1) & (likely != labels)
    rows = wrong.nonzero().flatten()
    return [
        Suspect(row, int(labels[row]), int(likely[row]), own[row].item())
        for row in rows[own[rows].argsort(stable=True)].tolist()
    ]
