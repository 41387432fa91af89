"""The nearest neighbors of every photo, by FAISS.

Shapes: N photos, D dimensions, k neighbors.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.harmonize.kmeans import faiss_module

Array = NDArray[np.float32]

# Up to so many rows each is compared with each; beyond, with those of the nearest cells, in which copies lie.
MOST_EXACT = 20_000
CELLS, SEARCHED = 512, 12
TRAINED_ON = 40 * CELLS


class Neighbors(NamedTuple):
    """Nearest other photos, nearest first.

    Attributes:
        index: Positions, int64, shape (N, k); -1 where there are fewer others.
        cosine: Cosine similarities, float32, shape (N, k); -1 there.
    """

    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index
    cosine: Array


def nearest_neighbors(rows: Array, count: int) -> Neighbors:
    """The ``count`` nearest others of every unit row (N, D).

    Exact up to 20,000 rows; beyond, an inverted file searches the 12 nearest of 512 cells. The same rows give
    the same result.

    Examples:
        >>> nearest_neighbors(np.float32([[1, 0], [0.8, 0.6], [-1, 0]]), 1).index.tolist()
        [[1], [0], [1]]
    """
    count = min(count, max(len(rows) - 1, 0))
    if count == 0:
        return Neighbors(np.empty((len(rows), 0), np.int64), np.empty((len(rows), 0), np.float32))
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    cosine, index = _index(rows).search(rows, count + 1)
    # A photo finds itself, but not always first among equal ones, and not at all where its row is zero.
    is_self = index == np.arange(len(rows))[:, None]
    is_self[~is_self.any(1), -1] = True
    index, cosine = (part[~is_self].reshape(len(rows), count) for part in (index, cosine))
    return Neighbors(index, np.where(index < 0, -1, cosine))


def _index(rows: Array):  # type: ignore[no-untyped-def]
    faiss = faiss_module()
    flat = faiss.IndexFlatIP(rows.shape[1])
    if len(rows) <= MOST_EXACT:
        flat.add(rows)
        return flat
    index = faiss.IndexIVFFlat(flat, rows.shape[1], CELLS, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    index.train(rows[:: max(1, len(rows) // TRAINED_ON)])
    index.add(rows)
    index.nprobe = SEARCHED
    return index
