"""Near copies: photos that show the same, at another size, compression, crop of a few pixels, or a second later.

Shapes: N photos, k neighbors.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sslgh.explore.neighbors import Neighbors
from sslgh.explore.perceptual_hash import hash_distances

# Bits of 64 in which the hashes of copies differ at most, given that the network finds them alike. Measured on the
# pairs of photos-lt and steel-lt: unlike photos differ in 32 bits on average, and hardly one pair in under 12.
MOST_BITS = 10
# Cosine (of centered features) of copies at least. Plain surfaces share a hash without being copies, and a burst
# of one scene has close features without equal pixels: each test alone finds what is none.
LEAST_COSINE = 0.9


class Copies(NamedTuple):
    """Groups of near copies.

    Attributes:
        groups: Positions of the photos of each group, at least two, ascending; the largest group first.
        pairs: The pairs (P, 2) that were found alike.
        bits: Bits in which the hashes of each pair differ, shape (P,).
        cosine: Cosine similarity of each pair, shape (P,).
    """

    groups: list[list[int]]
    pairs: NDArray[np.int64]
    bits: NDArray[np.uint8]
    cosine: NDArray[np.float32]

    @classmethod
    def none(cls) -> "Copies":
        """No copies, where no hashes are known."""
        return cls([], np.empty((0, 2), np.int64), np.empty(0, np.uint8), np.empty(0, np.float32))

    @property
    def spare(self) -> int:
        """Photos that could be left out so that one of each group stays."""
        return sum(len(group) - 1 for group in self.groups)

    def group_of(self, count: int) -> NDArray[np.int64]:
        """Number of the group of each of ``count`` photos, from 0; -1 for a photo without a copy."""
        found = np.full(count, -1, dtype=np.int64)
        for number, group in enumerate(self.groups):
            found[group] = number
        return found


def near_copies(neighbors: Neighbors, hashes: NDArray[np.uint64]) -> Copies:
    """Groups of photos that are linked by pairs alike in both features and perceptual hash.

    Args:
        neighbors: Nearest others of each photo; copies beyond the k nearest are linked through those.
        hashes: Perceptual hashes, shape (N,).

    Examples:
        >>> near = Neighbors(np.int64([[1], [0], [0]]), np.float32([[0.99], [0.99], [0.2]]))
        >>> near_copies(near, np.uint64([7, 5, 7])).groups
        [[0, 1]]
    """
    first = np.repeat(np.arange(len(hashes)), neighbors.index.shape[1])
    second, cosine = neighbors.index.ravel(), neighbors.cosine.ravel()
    bits = hash_distances(hashes[first], hashes[second])
    alike = (second >= 0) & (cosine >= LEAST_COSINE) & (bits <= MOST_BITS)
    pairs = np.sort(np.stack([first[alike], second[alike]], axis=1), axis=1)
    pairs, kept = np.unique(pairs, axis=0, return_index=True)
    bits, cosine = bits[alike][kept], cosine[alike][kept]
    return Copies(_linked(pairs, len(hashes)), pairs, bits, cosine)


def _linked(pairs: NDArray[np.int64], count: int) -> list[list[int]]:
    """Connected groups of at least two, the largest first."""
    if not len(pairs):
        return []
    edges = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    number, label = connected_components(edges, directed=False)
    sizes = np.bincount(label, minlength=number)
    order = np.argsort(label, kind="stable")
    parts = np.split(order, np.cumsum(sizes)[:-1])
    groups = [part.tolist() for part in parts if len(part) > 1]
    return sorted(groups, key=lambda group: (-len(group), group[0]))
