"""How often an epoch shows each class: instance-balanced, class-balanced, and what lies between.

Shape letters: N images, C classes that have images.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sslgh.data.batch_sampler import ORDER, QUOTA, ROUND, rng_for

Sampling = Literal["instance", "class-balanced", "square-root", "progressive"]
Sequence = Callable[[int], NDArray[np.int64]]


def class_sampling(
    labels: NDArray[np.int64], kind: Sampling, *, seed: int, epochs: int
) -> Sequence:
    """The images of each epoch, drawn by class (Kang et al., arXiv:1910.09217, section 3).

    Class c, of n_c images, gets the share p_c of every epoch's N places: n_c / N (instance), 1 / C
    (class-balanced), sqrt(n_c) / sum sqrt(n) (square-root), or (1 - t/T) n_c / N + (t/T) / C in epoch t
    of T (progressive; t counts from 0, so the first epoch shows every image once and class-balanced
    would be reached in epoch T).

    The paper draws each place by itself. Here a class gets N p_c places rounded up or down at random,
    so that its expectation is N p_c exactly, and shows no image again before all its others, over
    the borders of epochs too: the same shares with less noise.

    Args:
        labels: Class of every image, shape (N,). A class without images gets no places.
        kind: How p_c depends on n_c.
        seed: Random seed of the run.
        epochs: T.

    Returns:
        A function from an epoch in 0..T-1 to the N positions it shows, in order. It depends on the
        seed and the epoch alone; for "instance" the order is that of a run without class sampling.

    Raises:
        ValueError: If there are no labels, or the kind is unknown; from the function, if the epoch is
            not of the run.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 0, 1])
        >>> epoch = class_sampling(labels, "class-balanced", seed=0, epochs=2)
        >>> np.bincount(labels[epoch(0)])
        array([3, 3])
        >>> np.bincount(np.concatenate([epoch(0), epoch(1)]))  # 5 images share 6 places
        array([1, 1, 1, 1, 2, 6])
    """
    if kind not in get_args(Sampling):
        raise ValueError(f"unknown sampling {kind!r}; use {', '.join(get_args(Sampling))}")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"class sampling needs labels of shape (N,), got {labels.shape}")
    if kind == "instance":
        return lambda epoch: rng_for(seed, ORDER, epoch).permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    places = [_rounded(_quota(counts, kind, t / epochs), seed, t) for t in range(epochs)]
    ends = np.cumsum(places, axis=0)

    def positions(epoch: int) -> NDArray[np.int64]:
        if not 0 <= epoch < epochs:
            raise ValueError(f"epoch must lie in 0..{epochs - 1}, got {epoch}")
        starts = ends[epoch] - places[epoch]
        shown = [
            _continued(own, first, last, seed, label)
            for own, first, last, label in zip(members, starts, ends[epoch], classes, strict=True)
        ]
        return rng_for(seed, ORDER, epoch).permutation(np.concatenate(shown))

    return positions


def drawn_shares(
    counts: NDArray[np.int64], kind: Sampling, *, epoch: int, epochs: int
) -> NDArray[np.float64]:
    """The share p_c of each class among the images that an epoch shows: the prior of its batches.

    Args:
        counts: Images of each class, shape (C,); a class without images has share 0.
        kind: How p_c depends on n_c, as in `class_sampling`.
        epoch: In 0..T-1.
        epochs: T.

    Examples:
        >>> drawn_shares(np.array([9, 1, 0]), "square-root", epoch=0, epochs=1)
        array([0.75, 0.25, 0.  ])
    """
    shares = np.zeros(len(counts))
    if kind == "instance":
        return np.asarray(counts / counts.sum())
    quota = _quota(counts[counts > 0], kind, epoch / epochs)
    shares[counts > 0] = quota / counts.sum()
    return shares


def _quota(counts: NDArray[np.int64], kind: Sampling, share: float) -> NDArray[np.float64]:
    """N p_c, shape (C,), after the given share of the epochs."""
    equal, roots = np.full(len(counts), counts.mean()), np.sqrt(counts)
    if kind == "class-balanced":
        quota = equal
    elif kind == "square-root":
        quota = roots * counts.sum() / roots.sum()
    else:
        quota = (1 - share) * counts + share * equal
    return np.asarray(quota, dtype=np.float64)


def _rounded(quota: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Systematic sampling: one shift of all the borders keeps every expectation, and the total."""
    borders = np.cumsum(quota)
    total = round(float(borders[-1]))
    shifted = np.floor(borders + rng_for(seed, QUOTA, epoch).random()).astype(np.int64)
    shifted[-1] = total  # whatever rounding did to the last border
    places: NDArray[np.int64] = np.diff(np.minimum(shifted, total), prepend=0)
    return places


def _continued(
    own: NDArray[np.int64], first: int, last: int, seed: int, label: int
) -> NDArray[np.int64]:
    """Places ``first`` to ``last`` of a class's endless sequence of permutations of its images."""
    if first == last:
        return own[:0]
    rounds = range(first // len(own), (last - 1) // len(own) + 1)
    epoch_indices = np.concatenate(
        [rng_for(seed, ROUND, r, label).permutation(own) for r in rounds]
    )
    skipped = rounds.start * len(own)
    return epoch_indices[first - skipped : last - skipped]
