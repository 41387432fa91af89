"""The photos to label next, once there are labels: uncertain, of rare kinds, unlike each other.

Shapes: N photos, D dimensions, C kinds.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sslgh.explore.coverage import Array, cover, covered_by
from sslgh.explore.select import NONE, Choice

# Photos that are compared: those of the largest weight.
MOST_COMPARED = 5000
# Share of a kind's labels in the mean over kinds under which it counts as rare.
RARE = 0.5


def next_labels(
    rows: Array,
    probabilities: NDArray[np.float64],
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
        probabilities: Probabilities of the kinds, shape (N, C).
        labels: Kind of each photo, shape (N,); -1 for one without a label.
        names: C names.
        unlike: Which photos are unlike anything that was labeled, shape (N,); they count as certainly wrong.
        budget: Number of photos.
    """
    counts = np.bincount(labels[labels != NONE], minlength=len(names))
    predicted, surest = probabilities.argmax(1), probabilities.max(1)
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
        Choice(row, int(predicted[row]), _reason(probabilities[row], names, unlike[row], rare))
        for row in (int(pool[gain.row]) for gain in islice(order, budget))
    ]


def _reason(
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    unlike: np.bool_,
    rare: NDArray[np.bool_],
) -> str:
    second, first = np.argsort(probabilities, kind="stable")[-2:].tolist()
    likely = (
        f"{names[first]} {probabilities[first]:.0%} or {names[second]} {probabilities[second]:.0%}"
    )
    words = ["unlike anything labeled"] if unlike else []
    words += [f"{'unsure' if probabilities[first] < 0.5 else 'likely'}: {likely}"]
    words += ["a kind with few labels"] if rare[first] else []
    return "; ".join(words)
