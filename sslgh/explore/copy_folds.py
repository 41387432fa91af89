"""Folds in which near copies stay together: a copy in training would make its twin easy.

Shapes: N photos, F features.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sslgh.classify.selection import NEVER, stratified_folds
from sslgh.explore.neighbors import nearest_neighbors

Labels = NDArray[np.int64]

# Cosine of centered features from which two photos count as one (docs/photos.md). It links 1 pair of the 878 photos of
# photos-lt and 14 of the 486 of steel-lt, and three quarters of copies that are cut by 5 %. What is compressed or
# resized harder is often below, but then no closer than other photos of its kind: no twin that gives a label away.
ALIKE = 0.9
# A burst longer than this is linked through its own neighbors.
NEAREST = 10


def copy_units(rows: NDArray[np.float32]) -> Labels:
    """Numbers (N,) of photos, the same for photos that are linked by pairs alike and are like the first of them.

    Pairs alone make chains, whose ends show different things: what is not like the first photo of a chain begins a
    unit of its own.

    Args:
        rows: Unit rows of centered features, shape (N, F), as of `centered`: in fewer dimensions photos are closer.

    Examples:
        >>> copy_units(np.float32([[1, 0], [0, 1], [1, 0]])).tolist()
        [0, 1, 0]
    """
    near = nearest_neighbors(rows, min(NEAREST, len(rows) - 1))
    first, turn = np.nonzero((near.cosine >= ALIKE) & (near.index >= 0))
    second = near.index[first, turn]
    edges = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(rows), len(rows)))
    chains = connected_components(edges, directed=False)[1]
    units: Labels = np.arange(len(rows))
    order = np.argsort(chains, kind="stable")
    for chain in np.split(order, np.flatnonzero(np.diff(chains[order])) + 1):
        while len(chain):
            alike = rows[chain] @ rows[chain[0]] >= ALIKE
            alike[0] = True  # a row of zeros too
            units[chain[alike]] = chain[0]
            chain = chain[~alike]  # noqa: PLW2901 - what is left of it
    return units


def folds_of_units(labels: Tensor, units: Labels, folds: int) -> Tensor:
    """As `stratified_folds`, but that photos of one unit share a fold, shape (N,).

    A unit of photos with several kinds is dealt as its first photo. -1 for what is never held out: the photos of a
    kind whose photos are all one unit, and one unit of a kind whose units would all be held out together, so that
    heads have seen every kind.

    Raises:
        ValueError: If no kind has two units.
    """
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    part = stratified_folds(labels[torch.from_numpy(first)], folds)
    for kind in set(labels.tolist()):
        own = torch.from_numpy(unit)[labels == kind]
        if len(set(part[own].tolist())) == 1:
            part[own[0]] = NEVER
    return part[torch.from_numpy(unit)]
