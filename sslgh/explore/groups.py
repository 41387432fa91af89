"""Groups of photos that look alike, with how often each is found again when some photos are left out.

Shapes: N photos, D dimensions, K groups, R resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix

from sslgh.harmonize.mode_clustering import SMALLEST_GROUP, find_modes

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Partition = Callable[[Array, int, float], Labels]

MOST_GROUPS = 300
RESAMPLES = 10
# Share of the photos that each resample leaves out, as `sslgh.harmonize.recurrence` does.
LEFT_OUT = 0.2
# A group is found again where a group of the resample has at least this Jaccard similarity with it: under one
# half, more photos differ than agree (clusterwise stability of Hennig, Comput. Stat. Data Anal. 2007).
FOUND = 0.5
# Photos that groups are found again in, at most: a clustering of more takes minutes on two cores.
MOST_RESAMPLED = 30_000
# Fewer photos cannot be divided a second time without some of them.
FEWEST = 5
# A group that fewer resamples find has no interval; its ends are those of 90 %.
FEWEST_FOUND, NORMAL_90 = 5, 1.645


class Group(NamedTuple):
    """Photos that look alike.

    Attributes:
        members: Positions of its photos, the most typical first.
        share: Share of all photos.
        low: Lower end of the interval of the share, as `share_interval`; nan if under 5 resamples found it.
        high: Upper end.
        found: Number of resamples that found it again.
        resamples: Number of resamples; 0 if there are too few photos for any.
    """

    members: Labels
    share: float
    low: float
    high: float
    found: int
    resamples: int


class Groups(NamedTuple):
    """All groups, the largest first, and the number of groups in each resample.

    Attributes:
        groups: K groups.
        numbers: Number of groups that each of R resamples was divided into.
    """

    groups: list[Group]
    numbers: list[int]

    def labels(self, count: int) -> Labels:
        """Group of each of ``count`` photos, from 0; -1 for a photo in none."""
        found = np.full(count, -1, dtype=np.int64)
        for number, group in enumerate(self.groups):
            found[group.members] = number
        return found

    @property
    def recurring(self) -> list[Group]:
        """Groups that at least half of the resamples found again."""
        return [group for group in self.groups if 2 * group.found >= group.resamples > 0]


def modes(rows: Array, seed: int, kept: float = 1.0) -> Labels:
    """Group of each row (N, D) by `find_modes`: the number of groups and their sizes come from the data.

    ``kept`` is the share of all photos that the rows are of: a group of 8 has about 6 photos in a resample of 80 %,
    and would never be found again if it had to have 8.
    """
    most = max(1, min(MOST_GROUPS, len(rows) // 2))
    smallest = max(3, int(SMALLEST_GROUP * kept))
    found = find_modes(torch.from_numpy(rows), max_groups=most, seed=seed, smallest=smallest)
    labels: Labels = found.labels.numpy()
    return labels


def find_groups(
    rows: Array, *, seed: int = 0, partition: Partition = modes, resamples: int = RESAMPLES
) -> Groups:
    """Divide photos into groups, and again ten times with a fifth of them left out, or more of over 37,500.

    Args:
        rows: Directions, shape (N, D).
        seed: Seed of the clustering and the resamples; the same arguments give the same groups.
        partition: Clusters rows (n, D), with a seed and the share of the photos that they are: labels (n,) from 0.
        resamples: R; none are made of fewer than 5 photos.

    Examples:
        >>> rows = np.repeat(np.float32([[1, 0], [-1, 0]]), [30, 10], axis=0)
        >>> found = find_groups(rows, partition=lambda rows, *_: (rows[:, 0] < 0).astype(np.int64))
        >>> [(group.share, group.found) for group in found.groups]
        [(0.75, 10), (0.25, 10)]
    """
    labels = _by_size(partition(rows, seed, 1.0))
    resamples = resamples if len(rows) >= FEWEST else 0
    number = int(labels.max()) + 1
    generator = np.random.default_rng(seed)
    shares = np.full((resamples, number), np.nan)
    numbers = []
    for turn in range(resamples):
        kept = _kept(len(rows), generator)
        again = partition(rows[kept], seed + 1 + turn, len(kept) / len(rows))
        numbers.append(len(np.unique(again)))
        shares[turn] = found_shares(labels[kept], again, number)
    return Groups([_group(rows, labels, k, shares[:, k]) for k in range(number)], numbers)


def found_shares(labels: Labels, again: Labels, number: int) -> NDArray[np.float64]:
    """Share of the photos of a resample in the group that stands for each of the first, shape (K,).

    Args:
        labels: First group of each photo of the resample, shape (n,), from 0 to K - 1.
        again: Group in the resample, shape (n,), from 0.
        number: K.

    Returns:
        nan where no group of the resample has a Jaccard similarity of at least one half.
    """
    ones = np.ones(len(labels))
    table = coo_matrix((ones, (labels, again)), shape=(number, int(again.max()) + 1)).tocsr()
    first, second = np.asarray(table.sum(1)).ravel(), np.asarray(table.sum(0)).ravel()
    shares = np.full(number, np.nan)
    for k in range(number):
        row = table[[k]]
        if row.nnz:
            jaccard = row.data / (first[k] + second[row.indices] - row.data)
            best = int(jaccard.argmax())
            if jaccard[best] >= FOUND:
                shares[k] = second[row.indices[best]] / len(labels)
    return shares


def _kept(count: int, generator: np.random.Generator) -> Labels:
    """Positions of the photos of a resample, ascending."""
    return np.sort(generator.permutation(count)[: kept_count(count)])


def kept_count(count: int) -> int:
    """Number of ``count`` photos that a resample keeps."""
    return min(round((1 - LEFT_OUT) * count), MOST_RESAMPLED)


def share_interval(
    count: int, total: int, resampled: NDArray[np.float64], kept: int
) -> tuple[float, float]:
    """Interval of about 90 % of the share of a group, for photos drawn as these were.

    Wilson's interval of a share (J. Am. Stat. Assoc. 1927) with the variance that the resamples show where that is
    larger than the binomial one: the delete-d jackknife (Shao and Wu, Ann. Stat. 1989) turns the spread of samples of
    ``kept`` photos without replacement into that of all, by kept / (total - kept).

    Args:
        count: Photos of the group.
        total: Photos in all.
        resampled: Shares of the group in the resamples that found it again.
        kept: Photos of a resample.

    Examples:
        >>> [round(end, 3) for end in share_interval(20, 100, np.full(10, 0.2), 80)]
        [0.142, 0.273]
    """
    share = count / total
    rough = (count + 0.5) / (total + 1)  # 1 of 1 still varies
    jackknife = float(np.mean((resampled - share) ** 2)) * kept / (total - kept)
    number = rough * (1 - rough) / max(rough * (1 - rough) / total, jackknife)
    square = NORMAL_90**2 / number
    middle = (share + square / 2) / (1 + square)
    half = NORMAL_90 * np.sqrt(share * (1 - share) / number + square / (4 * number)) / (1 + square)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _by_size(labels: Labels) -> Labels:
    """Labels renumbered so that the largest group is 0."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[codes]


def _group(rows: Array, labels: Labels, number: int, shares: NDArray[np.float64]) -> Group:
    members = np.flatnonzero(labels == number)
    center = rows[members].mean(0)
    order = np.argsort(-(rows[members] @ center), kind="stable")
    known = shares[np.isfinite(shares)]
    low = high = float("nan")
    if len(known) >= FEWEST_FOUND:
        low, high = share_interval(len(members), len(labels), known, kept_count(len(labels)))
    share = len(members) / len(labels)
    return Group(members[order], share, low, high, len(known), len(shares))
