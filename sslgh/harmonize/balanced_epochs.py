"""Balanced sampling from a hierarchy of clusters (Vo et al., arXiv:2405.15613).

Clusters of k-means lie where the points lie, so a draw that is balanced over them stays as dense as the
population. Here k-means is repeated on the points next to its own centroids, which spreads the centroids
over all the places where there are points; then every cluster gets as many places as every other, as far
as its points reach, from the coarsest level down.

Written from the description, as the authors' code may not be used commercially. Two things differ:
embeddings are compared by direction, in float32 (theirs: Euclidean, float64).

Shapes: N points, D width, L levels (finest first), M clusters of a level.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslgh.harmonize.kmeans import spherical_kmeans

ITERATIONS = 50  # the paper's, of Lloyd's algorithm
POINTS_PER_CLUSTER = 20  # 100,000 points in 5,000 clusters, the paper's middle example
CLUSTERS_PER_CLUSTER = 5  # and those in 1,000
ROWS_AT_ONCE = 4096

Integers = NDArray[np.int64]


def level_counts(num_points: int) -> tuple[int, ...]:
    """Clusters of each level, finest first: one for 20 points, and one for 5 of those.

    These are the ratios of the paper's example for 100,000 points; its others range from 3 to 70 points
    a cluster. A second level of fewer than 2 clusters is left out.

    Examples:
        >>> level_counts(100_000), level_counts(351), level_counts(118)
        ((5000, 1000), (17, 3), (5,))
    """
    fine = max(num_points // POINTS_PER_CLUSTER, 1)
    coarse = fine // CLUSTERS_PER_CLUSTER
    return (fine, coarse) if coarse > 1 else (fine,)


def hierarchical_clusters(
    embeddings: Tensor,
    *,
    counts: tuple[int, ...] | None = None,
    rounds: int = 10,
    kept: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Tensor:
    """Nested clusters: k-means of the points, then of its centroids, and so on, each spread out.

    A round of spreading takes the ``kept`` points next to each centroid, clusters those alone anew, and
    assigns all points to what comes out.

    Args:
        embeddings: Shape (N, D), any length; only directions count.
        counts: M of each level, finest first; None: `level_counts`. A level may end with fewer,
            where there are fewer distinct directions.
        rounds: Rounds of resampling at each level; the paper's 10. 0: plain hierarchical k-means.
        kept: Points next to each centroid, for each level; None: half the mean size of a cluster,
            rounded up (the paper's [10, 3] for 100,000 points).
        seed: Seed of k-means; the same arguments give the same bits.

    Returns:
        Cluster of each point, shape (L, N), int64, on the device of ``embeddings``: row 0 the finest.
        Points that share a cluster share those of all later rows.

    Raises:
        ValueError: If the embeddings are not finite or not (N, D), or the numbers do not fit.

    Examples:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-0.1, 1.0], [0.0, 1.0]])
        >>> fine, coarse = hierarchical_clusters(points, counts=(4, 2))
        >>> len(fine.unique()), bool(coarse[0] == coarse[1]), bool(coarse[1] == coarse[2])
        (4, True, False)
    """
    counts = level_counts(len(embeddings)) if counts is None else counts
    _check(embeddings, counts, rounds, kept)
    points = F.normalize(embeddings.detach().float(), dim=1)
    levels: list[Tensor] = []
    for level, count in enumerate(counts):
        count = min(count, len(points))  # noqa: PLW2901 - a level below may have ended with fewer
        near = -(-len(points) // (2 * count)) if kept is None else kept[level]
        points, labels = _spread_clusters(points, count, rounds=rounds, kept=near, seed=seed)
        levels.append(labels[levels[-1]] if levels else labels)
    return torch.stack(levels)


def _spread_clusters(
    points: Tensor, count: int, *, rounds: int, kept: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Centroids (M, D) and the cluster of each point (N,); none is empty."""
    centroids, labels = spherical_kmeans(points, count, seed=seed, iterations=ITERATIONS)
    for turn in range(1, rounds + 1):
        near = points[_nearest(points, centroids, labels, kept)]
        # From a new start: from the old one, k-means would find the centroids where it left them.
        centroids, _ = spherical_kmeans(
            near, min(count, len(near)), seed=seed + turn, iterations=ITERATIONS
        )
        labels = torch.cat([(p @ centroids.T).argmax(1) for p in torch.split(points, ROWS_AT_ONCE)])
    used, labels = torch.unique(labels, return_inverse=True)
    return centroids[used], labels


def _nearest(points: Tensor, centroids: Tensor, labels: Tensor, kept: int) -> Tensor:
    """Positions of the ``kept`` points of each cluster that lie nearest to its centroid."""
    order = (points * centroids[labels]).sum(1).argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # by cluster, nearest first
    sizes = torch.bincount(labels, minlength=len(centroids))
    begins = (sizes.cumsum(0) - sizes)[labels[order]]
    rank = torch.arange(len(order), device=order.device) - begins
    return order[rank < kept]


def balanced_sample(
    clusters: Integers, size: int, generator: np.random.Generator, *, most_repeats: int = 1
) -> Integers:
    """Draw positions so that the clusters of every level share the places as evenly as they can.

    From the coarsest level down, the clusters within a cluster share its places: each gets
    min(c, m times its points) with the one c that fits, and what is left over goes at random, one
    each. The points of a finest cluster are drawn at random, none again before all its others.

    Args:
        clusters: Nested, shape (L, N), finest first, as `hierarchical_clusters` gives them.
        size: Places, at most m N.
        generator: Generator of the draw.
        most_repeats: m, how often one point may be drawn (the paper's multiplier).

    Returns:
        Shape (size,), int64, sorted by cluster.

    Raises:
        ValueError: If the clusters are not (L, N), or there are more places than m N.

    Examples:
        Clusters of 6, 3 and 1 points and 7 places: the cap is 3.

        >>> clusters = np.repeat([[0, 1, 2]], [6, 3, 1], axis=1)
        >>> drawn = balanced_sample(clusters, 7, np.random.default_rng(0))
        >>> np.bincount(clusters[0, drawn])
        array([3, 3, 1])
    """
    if clusters.ndim != 2 or 0 in clusters.shape:
        raise ValueError(f"clusters must have shape (L, N), got {clusters.shape}")
    num_points = clusters.shape[1]
    if not 0 <= size <= most_repeats * num_points:
        raise ValueError(
            f"{num_points} points drawn at most {most_repeats} times fill 0 to "
            f"{most_repeats * num_points} places, got {size}; raise most_repeats or lower size"
        )
    return _drawn(np.arange(num_points), clusters, size, generator, most_repeats)


def _drawn(
    members: Integers,
    clusters: Integers,
    size: int,
    generator: np.random.Generator,
    most_repeats: int,
) -> Integers:
    if len(clusters) == 0:
        whole, rest = divmod(size, len(members))
        return np.concatenate([np.tile(members, whole), generator.permutation(members)[:rest]])
    coarsest = clusters[-1][members]
    order = np.argsort(coarsest, kind="stable")
    begins = np.flatnonzero(np.diff(coarsest[order])) + 1
    parts = np.split(members[order], begins)
    limits = np.array([most_repeats * len(part) for part in parts])
    places = capped_places(limits, size, generator)
    return np.concatenate(
        [
            _drawn(part, clusters[:-1], int(local), generator, most_repeats)
            for part, local in zip(parts, places, strict=True)
        ]
    )


def capped_places(limits: Integers, size: int, generator: np.random.Generator) -> Integers:
    """Share places out: min(c, limit) each, and the rest one by one at random.

    Args:
        limits: Most places of each, shape (M,).
        size: Number to hand out, at most the sum.
        generator: Chooses the entries that get one more than c.

    Returns:
        Shape (M,), int64; the sum is ``size``, no entry is above its limit, and an entry that is below
        its limit is at most 1 below any other.

    Examples:
        >>> capped_places(np.array([9, 1, 9, 3]), 14, np.random.default_rng(0))
        array([5, 1, 5, 3])
    """
    low, high = 0, size  # the cap that fits lies in low..high
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(limits, middle).sum() <= size:
            low = middle
        else:
            high = middle - 1
    places = np.minimum(limits, low)
    above = np.flatnonzero(limits > low)
    places[generator.permutation(above)[: size - int(places.sum())]] += 1
    return places


def balanced_epoch(
    clusters: Integers, generator: np.random.Generator, *, most_repeats: int
) -> Integers:
    """What an epoch shows, in order: N positions, balanced over the clusters.

    Points of no cluster (-1) are shown once each. Where all are, this is the permutation of an
    ordinary epoch, drawn from the same generator.

    Args:
        clusters: Nested, shape (L, N), -1 in all rows for a point of none.
        generator: Generator of the epoch's order.
        most_repeats: How often an epoch may show one point.

    Returns:
        Shape (N,), int64.

    Examples:
        Five places: one for the point of no cluster, two for each of the clusters.

        >>> clusters = np.array([[0, 1, 1, 1, -1]])
        >>> shown = balanced_epoch(clusters, np.random.default_rng(0), most_repeats=2)
        >>> np.bincount(clusters[0, shown] + 1)
        array([1, 2, 2])
    """
    shown = np.arange(clusters.shape[1])
    known = np.flatnonzero(clusters[0] >= 0)
    if len(known):
        drawn = balanced_sample(
            clusters[:, known], len(known), generator, most_repeats=most_repeats
        )
        shown = np.concatenate([np.flatnonzero(clusters[0] < 0), known[drawn]])
    return generator.permutation(shown)


def weighted_epoch(rates: NDArray[np.float64], generator: np.random.Generator) -> Integers:
    """What an epoch shows, in order: N positions, each as often as its rate says, rounded up or down.

    Systematic sampling: the rates of all points, in random order, are laid end to end and every unit
    shows one, so that a whole epoch misses its expected numbers by less than 1. Where all rates are 1,
    this is the permutation of an ordinary epoch, drawn from the same generator.

    Args:
        rates: Expected numbers, shape (N,), non-negative, mean 1.
        generator: Generator of the epoch's order.

    Returns:
        Shape (N,), int64.

    Examples:
        >>> shown = weighted_epoch(np.array([3.0, 0.5, 0.5, 0.0]), np.random.default_rng(0))
        >>> np.bincount(shown, minlength=4)[[0, 3]]
        array([3, 0])
    """
    if (rates == 1).all():
        return generator.permutation(len(rates))
    order = generator.permutation(len(rates))
    ends = np.cumsum(rates[order]) * (len(rates) / rates.sum())
    ends[-1] = len(rates)  # whatever the sum was rounded to
    begins = np.floor(np.concatenate([[0.0], ends]) + generator.random()).astype(np.int64)
    return generator.permutation(np.repeat(order, np.diff(begins)))


def _check(
    embeddings: Tensor, counts: tuple[int, ...], rounds: int, kept: tuple[int, ...] | None
) -> None:
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"embeddings must have shape (N, D), got {tuple(embeddings.shape)}")
    descending = all(fine > coarse for fine, coarse in itertools.pairwise(counts))
    if not counts or not descending or not 1 <= counts[-1] <= counts[0] <= len(embeddings):
        raise ValueError(
            f"counts must fall from at most {len(embeddings)} (the points) to at least 1, got {counts}"
        )
    if rounds < 0:
        raise ValueError(f"rounds must be 0 or more, got {rounds}")
    if kept is not None and (len(kept) != len(counts) or min(kept) < 1):
        raise ValueError(
            f"kept must hold a positive number for each of the {len(counts)} levels, got {kept}"
        )
