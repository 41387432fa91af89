"""A part of a folder in which all kinds are as equal as they can be, and the hint when no new kind comes.

Shapes: N photos, K groups.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sslgh.explore.coverage import Array
from sslgh.explore.select import NONE, select

Labels = NDArray[np.int64]

# Labels in a row without a new kind after which `stop_hint` speaks.
LAST = 30


def balanced_subset(
    rows: Array, groups: Labels, size: int, *, copies: Labels | None = None
) -> Labels:
    """Positions of ``size`` photos, as many of each group as there can be, diverse within it; ascending.

    Args:
        rows: Unit rows, shape (N, D).
        groups: Kind or group of each photo, shape (N,); photos of -1 are left out.
        size: Number of photos; fewer are returned where there are fewer.
        copies: As for `select`.

    Raises:
        ValueError: If no photo has a group.
    """
    names = np.unique(groups[groups != NONE])
    if not len(names):
        raise ValueError(
            "a balanced subset needs photos with a kind or a group, and there are none"
        )
    copies = np.full(len(rows), NONE) if copies is None else copies
    lists = []
    for name in names:
        members = np.flatnonzero(groups == name)
        chosen = select(rows[members], min(size, len(members)), copies=copies[members])
        lists.append(members[[choice.row for choice in chosen]])
    quotas = equal_shares([len(part) for part in lists], size)
    return np.sort(np.concatenate([part[:n] for part, n in zip(lists, quotas, strict=True)]))


def equal_shares(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of each of K groups so that they sum to ``total`` and the smallest is as large as it can be.

    Examples:
        >>> equal_shares([100, 3, 50], 13), equal_shares([2, 1], 10)
        ([5, 3, 5], [2, 1])
    """
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    # From the smallest on, each takes an equal part of what is left, or all it has.
    order = sorted(range(len(sizes)), key=lambda k: (sizes[k], k))
    for turn, k in enumerate(order):
        shares[k] = min(sizes[k], left // (len(order) - turn))
        left -= shares[k]
    return shares


def stop_hint(kinds: Sequence[str]) -> str | None:
    """A sentence when the last 30 labels, in the order in which they were given, brought no new kind.

    Examples:
        >>> stop_hint(["cat", "dog"] + ["cat"] * 30)
        'the last 30 labels gave no new kind (2 so far): more photos will mostly be of kinds that are known'
    """
    if len(kinds) <= LAST or set(kinds[-LAST:]) - set(kinds[:-LAST]):
        return None
    return (
        f"the last {LAST} labels gave no new kind ({len(set(kinds))} so far): more photos will mostly be of kinds that "
        "are known"
    )
