"""Surrogate classes of a population: modes of the embeddings, however unequal their sizes.

Plain k-means splits the frequent kinds, because a cut through a large group lowers its objective
more than finding a small one. Here many small clusters are merged wherever the points do not thin
out between them, so the number of groups comes from the data and their sizes are the shares.

Shapes: N samples, D embedding width, M micro-clusters, K' groups.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from sslgh.harmonize.kmeans import spherical_kmeans

POINTS_PER_MICRO = 25  # under 10 the micro-clusters are noise, too many points to one miss the tail
ITERATIONS = 10  # more move the borders of micro-clusters, not of groups
MAX_MICRO_CLUSTERS = 4096  # average linkage takes a second and 70 MB for these
SMALLEST_GROUP = 8
NEIGHBORS = 6  # groups a group is compared with
SAMPLE = 10_000  # rows that stand for a larger group in a comparison
DEPTH = 0.7  # two normal groups of one size are apart from 2.8 standard deviations on
SIGNIFICANCE = 2.0  # standard deviations of counting noise

Array = NDArray[np.float32]


class Modes(NamedTuple):
    """Result of clustering a population; groups are ordered by size, largest first.

    Attributes:
        labels: Group of each sample, shape (N,), int64.
        means: Mean directions, shape (K', D), unit rows.
        counts: Samples of each group, shape (K',), int64.
        micro: Centroids of the micro-clusters, shape (M, D): the ``start`` of the next call.
    """

    labels: Tensor
    means: Tensor
    counts: Tensor
    micro: Tensor


def find_modes(
    embeddings: Tensor,
    *,
    max_groups: int,
    groups: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    smallest: int = SMALLEST_GROUP,
) -> Modes:
    """Find the groups of a population and their sizes.

    1. Spherical k-means into micro-clusters of about 25 points.
    2. Average linkage of their centroids gives the order in which they are merged.
    3. When two meet, they become one group unless the points thin out between them: all points are
       seen by their angle in the plane of both means, each without its own share in its mean (which
       alone would part any two sets in high dimensions), and a valley must be deep and beyond chance.
       Groups under ``smallest`` points, 8 by default, always join.
    4. More groups than allowed: the smallest joins its nearest, again and again. Fewer than
       ``groups`` asks for: the widest is cut in two by k-means, again and again.

    Embeddings without modes are one group: that is an answer, not a failure.

    Args:
        embeddings: Shape (N, D), any length; only directions count.
        max_groups: Most groups there may be.
        groups: Number of groups, if known; None: found from the data. Fewer come back only when
            the embeddings have fewer distinct directions.
        seed: Seed of k-means; the same arguments give the same bits.
        start: ``micro`` of an earlier call, for speed and for groups that change little.
        smallest: Fewest points of a group; at least 2.

    Raises:
        ValueError: If the embeddings are not finite or not (N, D), or the numbers do not fit.

    Examples:
        >>> embeddings = torch.cat([torch.tensor([[1.0, 0.0]] * 90), torch.tensor([[0.0, 1.0]] * 10)])
        >>> find_modes(embeddings, max_groups=5).counts
        tensor([90, 10])
    """
    _check(embeddings, max_groups, groups)
    unit = F.normalize(embeddings.detach().float().cpu(), dim=1)
    num_micro = max_micro_clusters(len(unit), max_groups)
    start = None if start is None else start[:num_micro]
    micro, micro_labels = spherical_kmeans(
        unit, num_micro, seed=seed, start=start, iterations=ITERATIONS
    )
    rows = unit.numpy()
    found = _merge_modes(rows, micro.numpy(), micro_labels.numpy(), smallest)
    found = _join_smallest(found, groups or max_groups)
    if groups is not None:
        found = _split_widest(found, rows, groups, seed)
    found.sort(key=lambda group: (-group.count, group.members.min()))
    labels = np.empty(len(rows), dtype=np.int64)
    for number, group in enumerate(found):
        labels[group.members] = number
    device = embeddings.device
    means = F.normalize(torch.from_numpy(np.stack([group.total for group in found])), dim=1).float()
    counts = torch.tensor([group.count for group in found])
    return Modes(
        torch.from_numpy(labels).to(device), means.to(device), counts.to(device), micro.to(device)
    )


class _Cluster:
    """Indices of some samples, the sum of their rows, and the rows (or a sample of them)."""

    def __init__(
        self, members: NDArray[np.intp], total: NDArray[np.float64], sample: Array
    ) -> None:
        self.members, self.total = members, total
        self.count = len(members)
        self.sample = sample if len(sample) <= 2 * SAMPLE else sample[:: -(-len(sample) // SAMPLE)]

    @classmethod
    def of(cls, members: NDArray[np.intp], rows: Array) -> "_Cluster":
        local = rows[members]
        return cls(members, local.sum(axis=0, dtype=np.float64), local)

    def __add__(self, other: "_Cluster") -> "_Cluster":
        return _Cluster(
            np.concatenate([self.members, other.members]),
            self.total + other.total,
            self._joint_sample(other),
        )

    def _joint_sample(self, other: "_Cluster") -> Array:
        """Both samples, the denser one thinned so that each row stands for as many points."""
        mine, theirs = self.weight, other.weight
        return np.concatenate(
            [_thin(self.sample, theirs / mine), _thin(other.sample, mine / theirs)]
        )

    @property
    def weight(self) -> float:
        """Points that one row of the sample stands for."""
        return self.count / len(self.sample)

    @property
    def direction(self) -> NDArray[np.float64]:
        return self.total / max(float(np.linalg.norm(self.total)), 1e-12)


def _thin(sample: Array, factor: float) -> Array:
    if factor <= 1:
        return sample
    kept = np.linspace(0, len(sample) - 1, max(1, round(len(sample) / factor))).astype(np.int64)
    return np.take(sample, kept, axis=0)


def max_micro_clusters(num_samples: int, max_groups: int) -> int:
    """Number of micro-clusters for so many samples; never fewer for more."""
    wanted = min(max(num_samples // POINTS_PER_MICRO, 3 * max_groups), MAX_MICRO_CLUSTERS)
    return max(1, min(wanted, num_samples // 10))


def _merge_modes(
    rows: Array, micro: Array, micro_labels: NDArray[np.int64], smallest: int
) -> list[_Cluster]:
    """Walk up the tree of micro-clusters; each node holds the groups found below it."""
    order = np.argsort(micro_labels, kind="stable")
    kept, begins = np.unique(micro_labels[order], return_index=True)
    nodes = [[_Cluster.of(members, rows)] for members in np.split(order, begins[1:])]
    if len(nodes) == 1:
        return nodes[0]
    for left, right, _, _ in linkage(micro[kept], method="average"):
        nodes.append(_merge_children(nodes[int(left)], nodes[int(right)], smallest))
        nodes[int(left)], nodes[int(right)] = [], []
    return nodes[-1]


def _merge_children(left: list[_Cluster], right: list[_Cluster], smallest: int) -> list[_Cluster]:
    """Join what is not apart, beginning with the groups of the shorter list."""
    pending, settled = sorted((left, right), key=len)
    while pending:
        group = pending.pop()
        similarity = np.stack([other.direction for other in settled]) @ group.direction
        nearest = np.argsort(-similarity, kind="stable")[:NEIGHBORS]
        joins = (int(n) for n in nearest if not _is_separated(settled[int(n)], group, smallest))
        partner = next(joins, None)
        if partner is None:
            settled.append(group)
        else:  # the union may reach others that neither part reached
            pending.append(settled.pop(partner) + group)
            if not settled:
                settled.append(pending.pop())
    return settled


def _is_separated(first: _Cluster, second: _Cluster, smallest: int) -> bool:
    """Do the points thin out between two groups?"""
    if min(first.count, second.count) < smallest:
        return False
    angles = _angles(first, second)
    if angles is None:
        return False
    low, high = angles
    begin, end = float(np.median(low)), float(np.median(high))
    if end <= begin:
        return False
    narrow = low if first.count < second.count else high
    density = _density(
        np.concatenate([low, high]),
        np.repeat([first.weight, second.weight], [len(low), len(high)]),
        (begin, end),
        bandwidth=_bandwidth(narrow),
    )
    bottom = int(np.argmin(density))
    valley = density[bottom]
    peak = min(density[: bottom + 1].max(), density[bottom:].max())
    # The square root of a count has standard deviation 1/2; a Gaussian kernel shrinks it by 2^(1/4).
    surprise = (np.sqrt(peak) - np.sqrt(valley)) * 2 * 2**0.25 / np.sqrt(2)
    return bool(valley < DEPTH * peak and surprise > SIGNIFICANCE)


def _angles(first: _Cluster, second: _Cluster) -> tuple[Array, Array] | None:
    """Angle of each row in the plane of both means: ``first`` below 0, ``second`` above.

    Angles, because on a line through both means the ends of a long group on the sphere pile up. A row
    is left out of its own group's mean, and the means' lengths are estimated without the part that
    is noise. None when the means are no two directions.
    """
    local, other = _cosines(first, second)
    own2, other2 = _cosines(second, first)
    squares = float(local.mean()), float(own2.mean())
    if min(squares) <= 0:
        return None
    length, length2 = np.sqrt(squares)
    cosine = float(first.total @ second.total) / (first.count * second.count * length * length2)
    if cosine >= 1:
        return None
    # Between opposite means there is no middle to look from: the floor keeps its noise small.
    across, along = np.sqrt(2 - 2 * cosine), np.sqrt(max(2 + 2 * cosine, 0.02))
    low, high = local / length, other / length2
    low2, high2 = other2 / length, own2 / length2
    return (
        np.arctan2((high - low) / across, (high + low) / along),
        np.arctan2((high2 - low2) / across, (high2 + low2) / along),
    )


def _cosines(group: _Cluster, other: _Cluster) -> tuple[Array, Array]:
    """Rows of ``group`` times the mean of their own group without them, and times the other mean."""
    rows = group.sample
    local = rows @ group.total.astype(np.float32) - np.einsum("nd,nd->n", rows, rows)
    return local / (group.count - 1), rows @ (other.total / other.count).astype(np.float32)


def _bandwidth(values: Array) -> float:
    """Scott's rule on the interquartile range, so that stray points do not blur the valley."""
    low, high = np.percentile(values, [25, 75])
    return float(1.06 * (high - low) / 1.349 * len(values) ** -0.2)


def _density(
    values: Array, weights: NDArray[np.float64], span: tuple[float, float], *, bandwidth: float
) -> NDArray[np.float64]:
    """Points under a Gaussian kernel of height 1 at 201 places from one end of ``span`` to the other."""
    steps = 200
    step = (span[1] - span[0]) / steps
    width = float(np.clip(bandwidth / step, steps / 50, steps / 2.5))
    reach = int(3 * width)
    bins = np.rint((values - span[0]) / step).astype(np.int64) + reach
    inside = (bins >= 0) & (bins <= steps + 2 * reach)
    counts = np.bincount(bins[inside], weights[inside], minlength=steps + 2 * reach + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.convolve(counts, kernel, mode="valid").astype(np.float64)


def _join_smallest(found: list[_Cluster], most: int) -> list[_Cluster]:
    found = list(found)
    while len(found) > most:
        smallest = found.pop(min(range(len(found)), key=lambda n: found[n].count))
        similarity = np.stack([group.direction for group in found]) @ smallest.direction
        nearest = int(similarity.argmax())
        found[nearest] = found[nearest] + smallest
    return found


def _split_widest(found: list[_Cluster], rows: Array, wanted: int, seed: int) -> list[_Cluster]:
    """Cut the group of the largest spread in two until there are enough, or nothing is left to cut."""
    found = list(found)
    whole: list[_Cluster] = []
    while found and len(found) + len(whole) < wanted:
        widest = found.pop(int(np.argmax([g.count - np.linalg.norm(g.total) for g in found])))
        halves = _halves(widest, rows, seed)
        if len(halves) == 2:
            found += halves
        else:
            whole += halves
    return found + whole


def _halves(group: _Cluster, rows: Array, seed: int) -> list[_Cluster]:
    if group.count < 2:
        return [group]
    _, side = spherical_kmeans(torch.from_numpy(rows[group.members]), 2, seed=seed)
    parts = [group.members[side.numpy() == number] for number in range(2)]
    return [_Cluster.of(part, rows) for part in parts if len(part)]


def _check(embeddings: Tensor, max_groups: int, groups: int | None) -> None:
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"embeddings must have shape (N, D), got {tuple(embeddings.shape)}")
    if max_groups < 1:
        raise ValueError(f"max_groups must be 1 or more, got {max_groups}")
    if groups is None:
        return
    most = min(max_groups, len(embeddings))
    if not 1 <= groups <= most:
        raise ValueError(
            f"groups must lie in 1..{most} (max_groups {max_groups}, {len(embeddings)} samples), got {groups}"
        )
