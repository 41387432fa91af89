"""Features of photos as directions around their mean: what groups, copies and maps are found in.

Shapes: N photos, F features, D kept dimensions.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Each costs time in every search. What lies beyond is not little (39 % of the variance of photos-lt), so that photos are
# closer here than by all their features: what counts as a copy by a cosine alone is found in `centered`.
MOST_DIMENSIONS = 64
# Rows of a block: float64 copies of all features of 50,000 photos would take half a gigabyte.
BLOCK = 8192


def directions(features: Array) -> Array:
    """Unit rows (N, D), D at most 64, after centering and rotation onto the principal axes.

    Embeddings share one direction, which alone would decide which are alike: the mean is subtracted. A photo
    that lies at the mean is a row of zeros.

    Args:
        features: Shape (N, F), finite.

    Raises:
        ValueError: If a value is not finite, or there is no row.

    Examples:
        >>> directions(np.float32([[1, 5], [3, 5]])).round(2).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must have shape (N, F), N > 0, got {features.shape}")
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    covariance = np.zeros((features.shape[1],) * 2)
    for block in _blocks(len(features)):
        rows = features[block] - mean
        covariance += rows.T @ rows
    if not np.isfinite(covariance).all():
        raise ValueError("features must be finite, got NaN or infinity: leave such rows out")
    axes = _main_axes(covariance)
    found = np.empty((len(features), axes.shape[1]), dtype=np.float32)
    for block in _blocks(len(features)):
        rows = (features[block] - mean) @ axes
        found[block] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def centered(features: Array) -> Array:
    """Unit rows (N, F) after centering, in all F features; raises as `directions`.

    Examples:
        >>> centered(np.float32([[1, 5], [3, 5]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must have shape (N, F), N > 0, got {features.shape}")
    rows: Array = features - features.mean(0, dtype=np.float64).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def _main_axes(covariance: NDArray[np.float64]) -> Array:
    """Axes of the largest variance first, as columns; their signs do not depend on the machine's LAPACK."""
    _, axes = np.linalg.eigh(covariance)
    axes = axes[:, ::-1][:, :MOST_DIMENSIONS]
    largest = np.abs(axes).argmax(0)
    signs = np.sign(axes[largest, np.arange(axes.shape[1])])
    main: Array = (axes * signs).astype(np.float32)
    return main


def _blocks(count: int) -> list[slice]:
    return [slice(begin, begin + BLOCK) for begin in range(0, count, BLOCK)]
