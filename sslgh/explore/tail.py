"""How unequal the groups of a folder are.

Shapes: K groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Tail(NamedTuple):
    """Summary of the sizes of groups.

    Attributes:
        sizes: Photos in each group, the most first.
        imbalance: Largest size over smallest.
        half: Number of the largest groups that together hold half of the photos.
        rare_share: Share of the photos in the smaller half of the groups.
    """

    sizes: list[int]
    imbalance: float
    half: int
    rare_share: float


def tail(sizes: Sequence[int]) -> Tail:
    """Describe sizes, each at least 1.

    Examples:
        >>> tail([10, 80, 5, 5])
        Tail(sizes=[80, 10, 5, 5], imbalance=16.0, half=1, rare_share=0.1)
    """
    ordered = sorted(sizes, reverse=True)
    below = np.cumsum(ordered)
    half = int(np.searchsorted(below, below[-1] / 2)) + 1
    rare = sum(ordered[-(len(ordered) // 2) :]) if len(ordered) > 1 else 0
    return Tail(ordered, ordered[0] / ordered[-1], half, rare / sum(ordered))
