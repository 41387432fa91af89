"""Whether a photo is unlike anything that was labeled: the distance to the nearest labeled photo.

Shapes: N photos, M labeled photos, F features.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Share of photos like the labeled ones that are reported nevertheless.
FALSE_ALARMS = 0.05
# Rows compared at once with all labeled ones.
CHUNK = 4096


class Novelty(NamedTuple):
    """Labeled photos in feature space, and the distance from which a photo is unlike all of them.

    The distance is one minus the largest cosine of centered features, as nearest neighbors detect what is out of
    distribution in Sun et al. (arXiv:2204.06507), with one neighbor: a rare kind has few.

    Attributes:
        center: Mean of the folder's features, shape (F,).
        rows: Unit rows of the labeled photos, shape (M, F).
        threshold: Distance; the quantile of labeled photos that were compared with the others.
        rate: Share of photos like the labeled ones that lie beyond it, at most.
    """

    center: Tensor
    rows: Tensor
    threshold: float
    rate: float

    def distances(self, features: Tensor) -> Tensor:
        """Distance of each photo to the nearest labeled one, shape (N,)."""
        parts = torch.split(features, CHUNK)
        nearest = [(normalize(p - self.center) @ self.rows.T).max(1).values for p in parts]
        return 1 - torch.cat(nearest)

    def unlike(self, features: Tensor) -> Tensor:
        """Which photos (N,) are unlike anything that was labeled."""
        return self.distances(features) > self.threshold


def fitted_novelty(features: Tensor, center: Tensor, units: Tensor, held_out: Tensor) -> Novelty:
    """The threshold from labeled photos, each compared with those that are no copy of it.

    The quantile is that of conformal prediction: of M such photos and one new photo of the same distribution, in any
    order, the new one is beyond the k-th smallest distance with probability 1 - k / (M + 1) at most.

    Args:
        features: Features of the labeled photos, shape (M, F).
        center: Mean of the folder's features, shape (F,).
        units: Photos of one number are copies of each other, shape (M,).
        held_out: Photos whose distance counts, shape (M,): not the only one of a kind, which is unlike all others.
    """
    rows = normalize(features - center)
    distance = []
    for begin in range(0, len(rows), CHUNK):
        cosine = rows[begin : begin + CHUNK] @ rows.T
        cosine[units[begin : begin + CHUNK, None] == units] = -torch.inf
        distance.append(1 - cosine.max(1).values)
    known = torch.cat(distance)[held_out].sort().values
    if not len(known):
        return Novelty(center, rows, math.inf, 0.0)
    rank = min(len(known), math.ceil((1 - FALSE_ALARMS) * (len(known) + 1)))
    return Novelty(center, rows, known[rank - 1].item(), 1 - rank / (len(known) + 1))
