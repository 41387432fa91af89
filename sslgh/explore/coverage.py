"""Rows that stand for as many others as possible, one after the other.

Shapes: N rows, D dimensions.
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

# Cosine distance at which a row stands for another by 1/e. Chosen on steel-lt (docs/studies/select.md) among .1, .2
# and .3, which do as well from 60 labels on.
REACH = 0.2
# Similarities held at once: 64 MiB of float32.
CHUNK = 2**24


class Gain(NamedTuple):
    """A row that is chosen, and what it adds.

    Attributes:
        row: Position among the rows.
        gain: Weighted number of rows that it stands for and no earlier one did.
        stands_for: The same, every row counted as 1.
    """

    row: int
    gain: float
    stands_for: float


def similarity(rows: Array, others: Array) -> Array:
    """How far each of ``others`` (M, D) stands for each of ``rows`` (N, D): (N, M), 1 for equal directions."""
    found: Array = np.exp((rows @ others.T - 1) / np.float32(REACH))
    return found


def soft_sizes(rows: Array) -> Floats:
    """About how many rows are like each one, itself included, shape (N,)."""
    return np.concatenate(
        [similarity(part, rows).sum(1, dtype=np.float64) for part in _parts(rows)]
    )


def covered_by(rows: Array, chosen: Array) -> Floats:
    """How far the nearest of ``chosen`` (M, D) stands for each row, shape (N,); 0 where there is none."""
    best = np.zeros(len(rows))
    for part in _parts(chosen, len(rows)):
        best = np.maximum(best, similarity(rows, part).max(1))
    return best


def cover(
    rows: Array, weights: Floats, *, covered: Floats, candidates: NDArray[np.bool_]
) -> Iterator[Gain]:
    """Candidates in the order in which they add most to the weighted coverage of all rows.

    The greedy choice of MaxHerding (arXiv:2407.12212): the coverage of a row is its similarity to the nearest chosen
    one, and every choice raises the weighted sum most. Typical rows of large masses come first, and no two that are
    alike. The sum is submodular: what a row adds only falls, so that old gains are bounds, and few are computed anew.

    Args:
        rows: Unit rows, shape (N, D).
        weights: How much each row counts, shape (N,), not negative.
        covered: Coverage by what was chosen before, shape (N,).
        candidates: Which rows may be chosen, shape (N,).
    """
    covered = covered.copy()
    places = np.flatnonzero(candidates)
    gains = [
        g for part in _parts(rows[places], len(rows)) for g in _gains(part, rows, weights, covered)
    ]
    # The lowest position first among equal gains.
    heap = [(-_rounded(gain), place) for gain, place in zip(gains, places.tolist(), strict=True)]
    heapq.heapify(heap)
    while heap:
        _, row = heapq.heappop(heap)
        added = np.maximum(similarity(rows, rows[[row]])[:, 0] - covered, 0)
        gain = _rounded(float(weights @ added))
        if heap and heap[0] < (-gain, row):
            heapq.heappush(heap, (-gain, row))
            continue
        covered += added
        yield Gain(row, gain, float(added.sum()))


def _rounded(gain: float) -> float:
    """Five digits: matrix products differ in the last ones from machine to machine."""
    return float(f"{gain:.5g}")


def _gains(part: Array, rows: Array, weights: Floats, covered: Floats) -> list[float]:
    added = similarity(part, rows)
    np.maximum(added - covered.astype(np.float32), 0, out=added)
    found: list[float] = (added @ weights.astype(np.float32)).tolist()
    return found


def _parts(rows: Array, width: int | None = None) -> list[Array]:
    size = max(1, CHUNK // max(1, width or len(rows)))
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]
