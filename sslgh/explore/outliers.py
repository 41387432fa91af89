"""Photos that are unlike all others.

Shapes: N photos, k neighbors.
"""

import numpy as np
from numpy.typing import NDArray

from sslgh.explore.neighbors import Neighbors

# Neighbors that a photo is compared with: more than a rare kind's handful would make all of it outliers.
COMPARED = 5
# Deviations (median absolute, scaled to those of a Gaussian) above the median from which a photo is reported.
UNUSUAL = 3.0
# Standard deviations of a Gaussian per median absolute deviation.
GAUSSIAN = 1.4826


def strangeness(neighbors: Neighbors, copy_group: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean cosine distance of each photo to its 5 nearest others that are not copies of it, shape (N,).

    The distance to the k nearest is the outlier score of Ramaswamy et al. (SIGMOD 2000); its mean is that of
    Angiulli and Pizzuti (PKDD 2002). A photo without such others has nan.

    Args:
        neighbors: Nearest others of each photo.
        copy_group: Group of near copies of each photo, shape (N,); -1 for a photo without a copy.
    """
    index = neighbors.index
    is_copy = (copy_group[:, None] >= 0) & (copy_group[:, None] == copy_group[index])
    usable = (index >= 0) & ~is_copy
    chosen = usable & (usable.cumsum(1) <= COMPARED)
    total = np.where(chosen, 1 - neighbors.cosine, 0).sum(1)
    counts = chosen.sum(1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan).astype(np.float32)


def odd_photos(score: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions of the photos whose score is unusually high, the highest first.

    Examples:
        >>> odd_photos(np.float32([0.1, 0.2, 0.15, 0.9, 0.12, 0.18])).tolist()
        [3]
    """
    known = np.flatnonzero(np.isfinite(score))
    if not len(known):
        return known
    values = score[known]
    middle = np.median(values)
    spread = GAUSSIAN * np.median(np.abs(values - middle))
    unusual = known[values > middle + max(UNUSUAL * spread, 1e-6)]
    order: NDArray[np.int64] = unusual[np.argsort(-score[unusual], kind="stable")]
    return order
