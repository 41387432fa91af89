"""Paired differences over blocks, their exact sign-flip test, and Holm's correction."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# 2^20 sums take 8 MB; each further block doubles memory and time.
MOST_BLOCKS = 20


class PairedDifference(NamedTuple):
    """Differences between two arms within the blocks that have both.

    Attributes:
        values: Difference of each block, shape (n,).
        mean: Their mean.
        error: Standard error of the mean, with n - 1 degrees of freedom; None for one block.
        p: Two-sided p of the sign-flip test.
    """

    values: tuple[float, ...]
    mean: float
    error: float | None
    p: float


def paired_difference(values: Sequence[float]) -> PairedDifference:
    """Mean, standard error and sign-flip p of differences (n,), n in 1..20.

    Examples:
        Two of the 4 sign patterns of (1, 3), the given one and its opposite, have a mean this large:

        >>> found = paired_difference([1.0, 3.0])
        >>> found.mean, found.error, found.p
        (2.0, 1.0, 0.5)
    """
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else None
    return PairedDifference(tuple(array.tolist()), float(array.mean()), error, sign_flip_p(array))


def sign_flip_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the mean of paired differences (n,), exact: over all 2^n sign patterns.

    If the arms do not differ, each difference is as likely as its negative (Fisher, The Design of
    Experiments, section 21). p is the share of the patterns whose mean is at least as far from 0.

    Raises:
        ValueError: If there are none, or more than 20.
    """
    if not 1 <= len(differences) <= MOST_BLOCKS:
        raise ValueError(
            f"the exact sign-flip test takes 1 to {MOST_BLOCKS} blocks, got {len(differences)}"
        )
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(differences.sum())
    # Sums in another order round otherwise; equal ones must count as equal.
    slack = 1e-9 * np.abs(differences).sum()
    return float((np.abs(sums) >= observed - slack).mean())


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p of each of m hypotheses, which bound the chance of any false rejection (Holm 1979).

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, position in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[position]))
        adjusted[position] = largest
    return adjusted
