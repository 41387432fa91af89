"""The photos to label next, once there are labels: uncertain, of rare kinds, unlike each other.

Shapes: N photos, D dimensions, C kinds.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.explore.coverage import Array, cover, covered_by
from sslgh.explore.select import NONE, Choice

# Photos that are compared: those of the largest weight.
MOST_COMPARED = 5000
# Share of a kind's labels in the mean over kinds under which it counts as rare.
RARE = 0.5


class Likeliest(NamedTuple):
    """The two most probable kinds of N photos, the most probable first.

    Attributes:
        kinds: Positions of the kinds, int64 (N, 2); of equal ones the last first.
        probabilities: Their probabilities, float64 (N, 2).
    """

    kinds: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def likeliest(chunks: Iterable[NDArray[np.float64]]) -> Likeliest:
    """The two most probable kinds, of probabilities of all kinds (M, C) for one chunk of photos after another.

    Examples:
        >>> likeliest([np.array([[0.2, 0.7, 0.1]]), np.array([[0.5, 0.0, 0.5]])]).kinds.tolist()
        [[1, 0], [2, 0]]
    """
    kinds, probabilities = [], []
    for chunk in chunks:
        row, rest = np.arange(len(chunk)), chunk.copy()
        first = _last_largest(rest)
        rest[row, first] = -np.inf
        kinds.append(np.stack([first, _last_largest(rest)], 1))
        probabilities.append(np.take_along_axis(chunk, kinds[-1], 1))
    return Likeliest(np.concatenate(kinds), np.concatenate(probabilities))


def _last_largest(table: NDArray[np.float64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = table.shape[1] - 1 - table[:, ::-1].argmax(1)
    return found


def next_labels(
    rows: Array,
    likely: Likeliest,
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    unlike: NDArray[np.bool_],
    budget: int = 20,
) -> list[Choice]:
    """Photos to label next, the most useful first.

    A photo counts by the probability that its prediction is wrong, over the root of the number of labels of the
    predicted kind; of these the greedy cover takes what no label and no earlier choice stands for.

    Args:
        rows: Unit rows of all photos, shape (N, D).
        likely: Most probable kinds of all photos.
        labels: Kind of each photo, shape (N,); -1 for one without a label.
        names: C names.
        unlike: Which photos are unlike anything that was labeled, shape (N,); they count as certainly wrong.
        budget: Number of photos.
    """
    counts = np.bincount(labels[labels != NONE], minlength=len(names))
    predicted, surest = likely.kinds[:, 0], likely.probabilities[:, 0]
    wrong = np.where(unlike, 1.0, 1 - surest)
    weights = wrong / np.sqrt(np.maximum(counts[predicted], 1))
    weights[labels != NONE] = -1
    pool = np.argsort(-weights, kind="stable")[:MOST_COMPARED]
    pool = np.sort(pool[labels[pool] == NONE])
    covered = covered_by(rows[pool], rows[labels != NONE])
    order = cover(
        rows[pool], weights[pool], covered=covered, candidates=np.ones(len(pool), dtype=bool)
    )
    rare = counts < RARE * counts.mean()
    return [
        Choice(row, int(predicted[row]), _reason(likely, row, names, unlike[row], rare))
        for row in (int(pool[gain.row]) for gain in islice(order, budget))
    ]


def _reason(
    likely: Likeliest,
    row: int,
    names: Sequence[str],
    unlike: np.bool_,
    rare: NDArray[np.bool_],
) -> str:
    (first, second), (most, less) = likely.kinds[row].tolist(), likely.probabilities[row].tolist()
    shown = f"{names[first]} {most:.0%} or {names[second]} {less:.0%}"
    words = ["unlike anything labeled"] if unlike else []
    words += [f"{'unsure' if most < 0.5 else 'likely'}: {shown}"]
    words += ["a kind with few labels"] if rare[first] else []
    return "; ".join(words)
