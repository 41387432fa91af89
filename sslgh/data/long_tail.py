"""The published way of cutting a balanced set to a long tail."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sslgh.data.image_set import DataError
from sslgh.recipe.data import LongTail, Shuffled

Integers = NDArray[np.int64]


def profile(n_max: int, num_classes: int, settings: LongTail) -> Integers:
    """Images by rank, from head to tail, for the profiles ``exp`` and ``step``, shape (C,).

    Truncated as in the public generator (LDAM, arXiv:1906.07413, ``imbalance_cifar.py``), not rounded.

    Examples:
        >>> profile(500, 3, LongTail(imbalance=100)).tolist()
        [500, 50, 5]
        >>> profile(500, 4, LongTail(profile="step", imbalance=10)).tolist()
        [500, 500, 50, 50]
    """
    ranks = range(num_classes)
    if settings.profile == "step":
        tail = int(n_max / settings.imbalance)
        return np.array([n_max if c < num_classes // 2 else tail for c in ranks])
    factor = 1 / settings.imbalance
    last = max(num_classes - 1, 1)
    return np.array([int(n_max * factor ** (c / last)) for c in ranks])


def select_long_tail(
    labels: NDArray[np.integer], settings: LongTail, class_names: Sequence[str]
) -> Integers:
    """Positions of a long-tailed subset, classes one after the other in label order.

    ``published`` is the generator of LDAM that all CIFAR-LT results use: NumPy's legacy generator is
    seeded once, the positions of each class are shuffled in label order, and the first n_c are kept.

    Args:
        labels: Shape (N,), 0..C-1.
        settings: Profile, imbalance, order of the classes, seed and selection.
        class_names: C names, for messages.

    Raises:
        DataError: If a class holds too few images, or would be left with none.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> select_long_tail(labels, LongTail(imbalance=4, select="first"), ("cat", "dog")).tolist()
        [0, 1, 2, 3, 4]
    """
    have = np.bincount(labels, minlength=len(class_names))
    need = _sizes(have, settings)
    if settings.profile != "natural" and (need.min() < 1 or (have < need).any()):
        raise _too_few(need, have, settings, class_names)
    generator = np.random.RandomState(settings.seed)
    kept = []
    for label, size in enumerate(need):
        positions = np.flatnonzero(labels == label)
        if settings.select == "published":
            generator.shuffle(positions)
        kept.append(positions[:size])
    return np.concatenate(kept).astype(np.int64)


def _sizes(have: Integers, settings: LongTail) -> Integers:
    """Images to keep of each class, in label order; with ``class_order`` the class at rank r is ``permutation(C)[r]``."""
    n_max = settings.max_per_class or int(have.max())
    if settings.profile == "natural":
        return np.minimum(have, n_max)
    by_rank = profile(n_max, len(have), settings)
    if not isinstance(settings.class_order, Shuffled):
        return by_rank
    sizes = np.empty_like(by_rank)
    sizes[np.random.RandomState(settings.class_order.shuffled).permutation(len(have))] = by_rank
    return sizes


def _too_few(
    need: Integers, have: Integers, settings: LongTail, class_names: Sequence[str]
) -> DataError:
    empty = np.flatnonzero(need < 1)
    if len(empty):
        return DataError(
            f"data.long_tail would leave class '{class_names[empty[0]]}' without an image "
            f"({len(empty)} classes in all; the largest gets {need.max()}, imbalance "
            f"{settings.imbalance:g}); lower data.long_tail.imbalance or raise max_per_class"
        )
    short = np.flatnonzero(have < need)
    first = short[0]
    return DataError(
        f"data.long_tail needs {need[first]} images of class '{class_names[first]}', which holds "
        f"{have[first]} ({len(short)} of {len(have)} classes are short); {_advice(have, settings)}"
    )


def _advice(have: Integers, settings: LongTail) -> str:
    """The largest head that every class can follow, when there is one."""
    for n_max in range(int(have.max()), 0, -1):
        need = _sizes(have, settings.model_copy(update={"max_per_class": n_max}))
        if need.min() < 1:
            break
        if (need <= have).all():
            return f"set data.long_tail.max_per_class to {n_max} or less"
    return "lower data.long_tail.imbalance or use profile: natural"
