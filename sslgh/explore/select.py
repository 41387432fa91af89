"""Which photos to label first: typical ones of every group, rare groups early, no two that are alike.

Shapes: N photos, D dimensions.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.explore.coverage import Array, Floats, Gain, cover, covered_by, soft_sizes

Labels = NDArray[np.int64]

# A group of n photos counts as n ** (1 - POWER): 0 is the folder as it is, 1 makes all groups equal.
POWER = 0.5
# Photos that are compared with each other: of more, as many of each group.
MOST_COMPARED = 20_000
NONE = -1


class Choice(NamedTuple):
    """A photo to label.

    Attributes:
        row: Position among the rows.
        group: Group of the photo; -1 if it is in none.
        reason: Why it is chosen, in a few words.
    """

    row: int
    group: int
    reason: str


def select(
    rows: Array,
    budget: int,
    *,
    groups: Labels | None = None,
    copies: Labels | None = None,
    known: Labels | None = None,
) -> list[Choice]:
    """Photos to label, the most useful first; any beginning of the list is a list for a smaller budget.

    Every choice covers most of what no label stands for yet (`cover`), and large groups count less than their size,
    so that the tail comes early. Of near copies one is chosen at most, and none of a photo that is labeled.

    Args:
        rows: Unit rows as `directions` makes them, shape (N, D).
        budget: Number of photos.
        groups: Group of each photo, shape (N,); -1 for a photo in none. None: how common a photo is comes from how
            many are like it.
        copies: Group of near copies of each photo, shape (N,); -1 for a photo without a copy.
        known: Label of each photo, shape (N,); -1 for a photo without one. The list goes on from these.

    Returns:
        ``budget`` choices, fewer where fewer photos are left.

    Raises:
        ValueError: If ``budget`` is below 1 or shapes disagree.

    Examples:
        A common kind in one direction, a rare one in another; the second choice is of the rare one:

        >>> rows = np.repeat(np.float32([[1, 0], [0, 1]]), [6, 2], axis=0)
        >>> [(c.row, c.reason) for c in select(rows, 2, groups=np.repeat([0, 1], [6, 2]))]
        [(0, 'first of group 1 (6 photos)'), (6, 'first of group 2 (2 photos)')]
    """
    none = np.full(len(rows), NONE, dtype=np.int64)
    groups, copies, known = (none if part is None else part for part in (groups, copies, known))
    _check(rows, budget, groups, copies, known)
    labeled = known != NONE
    pool = np.flatnonzero(_one_of_each(copies) & ~labeled & ~_copy_of(labeled, copies))
    sizes = _sizes(groups, _one_of_each(copies) | labeled)
    kept = pool[_sample(groups[pool])]
    seen = np.bincount(groups[labeled & (groups != NONE)], minlength=len(sizes))
    covered = covered_by(rows[kept], rows[labeled])
    weights = _weights(rows[kept], groups[kept], sizes)
    found = []
    order = cover(rows[kept], weights, covered=covered, candidates=np.ones(len(kept), dtype=bool))
    for gain in islice(order, budget):
        row = int(kept[gain.row])
        found.append(Choice(row, int(groups[row]), _reason(gain, int(groups[row]), sizes, seen)))
        if groups[row] != NONE:
            seen[groups[row]] += 1
    return found


def _reason(gain: Gain, group: int, sizes: Labels, seen: Labels) -> str:
    like = max(1, round(gain.stands_for))
    photos = "1 photo" if like == 1 else f"about {like} photos"
    if group == NONE:
        return f"stands for {photos}, unlike those before"
    size = int(sizes[group])
    of_group = f"of group {group + 1} ({size} {'photo' if size == 1 else 'photos'})"
    if not seen[group]:
        return f"first {of_group}"
    return f"number {seen[group] + 1} {of_group}, stands for {photos}, unlike those before"


def _weights(rows: Array, groups: Labels, sizes: Labels) -> Floats:
    """How much each photo of a sample counts: the photos of a group of n sum to n ** (1 - POWER)."""
    weights = soft_sizes(rows) ** -POWER if (groups == NONE).any() else np.empty(len(rows))
    inside = groups != NONE
    here = np.bincount(groups[inside], minlength=len(sizes))
    weights[inside] = (sizes ** (1 - POWER) / np.maximum(here, 1))[groups[inside]]
    return weights


def _sizes(groups: Labels, counted: NDArray[np.bool_]) -> Labels:
    """Photos of each group, near copies counted once."""
    return np.bincount(
        groups[counted & (groups != NONE)], minlength=int(groups.max(initial=NONE)) + 1
    )


def _one_of_each(copies: Labels) -> NDArray[np.bool_]:
    """The first photo of each group of copies, and all that have none."""
    first = np.zeros(len(copies), dtype=bool)
    first[np.unique(copies, return_index=True)[1]] = True
    one: NDArray[np.bool_] = first | (copies == NONE)
    return one


def _copy_of(labeled: NDArray[np.bool_], copies: Labels) -> NDArray[np.bool_]:
    copied: NDArray[np.bool_] = (copies != NONE) & np.isin(copies, copies[labeled])
    return copied


def _sample(groups: Labels) -> Labels:
    """At most `MOST_COMPARED` positions: as many of each group, and all of the groups that are smaller."""
    if len(groups) <= MOST_COMPARED:
        return np.arange(len(groups))
    order = np.random.default_rng(0).permutation(len(groups))
    by_group = order[np.argsort(groups[order], kind="stable")]
    _, begins, counts = np.unique(groups[by_group], return_index=True, return_counts=True)
    turn = np.arange(len(groups)) - np.repeat(begins, counts)
    return np.sort(by_group[np.argsort(turn, kind="stable")[:MOST_COMPARED]])


def _check(rows: Array, budget: int, *parts: Labels) -> None:
    if budget < 1:
        raise ValueError(f"the budget must be at least 1 photo, got {budget}")
    if rows.ndim != 2 or any(part.shape != rows.shape[:1] for part in parts):
        raise ValueError(
            f"rows must be (N, D), and groups, copies and known (N,), got {rows.shape} and "
            f"{', '.join(str(part.shape) for part in parts)}"
        )
