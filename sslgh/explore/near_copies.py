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
# Where copies make up much of a folder they are its mean, and centering leaves nothing of them: two copies alone have
# the cosine -1. So photos with all but equal hashes are copies too if their features as they are point one way.
FEW_BITS, LEAST_PLAIN_COSINE = 2, 0.98
BLOCK = 8192


class Copies(NamedTuple):
    """Groups of near copies.

    Attributes:
        groups: Positions of the photos of each group, at least two, ascending; the largest group first.
        pairs: The pairs (P, 2) that were found alike.
        bits: Bits in which the hashes of each pair differ, shape (P,).
        cosine: Cosine similarity of each pair, shape (P,): centered, or as they are where only that is high.
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


def near_copies(
    neighbors: Neighbors, hashes: NDArray[np.uint64], features: NDArray[np.float32] | None = None
) -> Copies:
    """Groups of photos that are linked by pairs alike in both features and perceptual hash.

    Args:
        neighbors: Nearest others of each photo; copies beyond the k nearest are linked through those.
        hashes: Perceptual hashes, shape (N,).
        features: Features before centering, shape (N, F), by which copies are found that make up the folder.

    Examples:
        >>> near = Neighbors(np.int64([[1], [0], [0]]), np.float32([[0.99], [0.99], [0.2]]))
        >>> near_copies(near, np.uint64([7, 5, 7])).groups
        [[0, 1]]
    """
    first, second, cosine = _candidates(neighbors, hashes)
    bits = hash_distances(hashes[first], hashes[second])
    alike = (second >= 0) & (cosine >= LEAST_COSINE) & (bits <= MOST_BITS)
    if features is not None:
        close = np.flatnonzero((second >= 0) & ~alike & (bits <= FEW_BITS))
        cosine[close] = plain = _plain_cosines(features, first[close], second[close])
        alike[close] = plain >= LEAST_PLAIN_COSINE
    pairs = np.sort(np.stack([first[alike], second[alike]], axis=1), axis=1)
    pairs, kept = np.unique(pairs, axis=0, return_index=True)
    bits, cosine = bits[alike][kept], cosine[alike][kept]
    return Copies(_linked(pairs, len(hashes)), pairs, bits, cosine)


def _candidates(
    neighbors: Neighbors, hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Neighbors, and photos that follow each other among those of one hash: firsts, seconds, cosines (-1: unknown)."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    first = np.repeat(np.arange(len(hashes)), neighbors.index.shape[1])
    return (
        np.concatenate([first, order[same]]),
        np.concatenate([neighbors.index.ravel(), order[same + 1]]),
        np.concatenate([neighbors.cosine.ravel(), np.full(len(same), -1, np.float32)]),
    )


def _plain_cosines(
    features: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosine similarities of features as they are, by blocks: all pairs at once would take gigabytes."""
    lengths = np.maximum(np.linalg.norm(features, axis=1), 1e-12)
    found = np.empty(len(first), dtype=np.float32)
    for begin in range(0, len(first), BLOCK):
        one, two = first[begin : begin + BLOCK], second[begin : begin + BLOCK]
        products = np.einsum("nf,nf->n", features[one], features[two])
        found[begin : begin + BLOCK] = products / (lengths[one] * lengths[two])
    return found


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
