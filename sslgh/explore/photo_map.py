"""A flat map of photos in which near ones look alike.

Shapes: N photos, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MOST_SHOWN = 5000
# Fewer photos than this have no neighborhoods that t-SNE could keep.
FEWEST = 12


def shown_on_map(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Positions of at most 5,000 of ``count`` photos, drawn without replacement, ascending."""
    if count <= MOST_SHOWN:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:MOST_SHOWN])


def principal_plane(rows: Array) -> Array:
    """Places (N, 2) from -1 to 1 along the first two axes; ``rows`` (N, D) are on principal axes already."""
    plane = np.zeros((len(rows), 2), dtype=np.float32)
    plane[:, : min(2, rows.shape[1])] = rows[:, :2]
    return scaled(plane)


def neighbor_map(rows: Array, seed: int = 0) -> Array:
    """Places (N, 2) from -1 to 1 by t-SNE (van der Maaten and Hinton, JMLR 2008), which keeps neighborhoods.

    Sizes and distances of clusters mean nothing in it. Fewer than 12 different photos lie on the principal plane.
    """
    if len(np.unique(rows, axis=0)) < FEWEST:  # of equal rows alone t-SNE never ends
        return principal_plane(rows)
    from sklearn.manifold import TSNE  # noqa: PLC0415  a second of import

    perplexity = min(30.0, (len(rows) - 1) / 3)
    found = TSNE(
        init="pca" if min(rows.shape) >= 2 else "random",
        perplexity=perplexity,
        learning_rate="auto",
        random_state=seed,
        max_iter=500,
    ).fit_transform(rows[:, :50])
    return scaled(found.astype(np.float32))


def umap_map(rows: Array, seed: int = 0) -> Array | None:
    """Places (N, 2) from -1 to 1 by UMAP (arXiv:1802.03426), or None without umap-learn (``pip install '.[umap]'``).

    Fewer than 12 different photos have none either.
    """
    if len(np.unique(rows, axis=0)) < FEWEST:
        return None
    try:
        from umap import UMAP  # noqa: PLC0415  seconds of import
    except ImportError:
        return None
    # One process: with a seed UMAP uses no more.
    found = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=seed, n_jobs=1)
    return scaled(np.asarray(found.fit_transform(rows[:, :50]), dtype=np.float32))


def scaled(places: Array) -> Array:
    """Places (N, 2) moved and stretched so that each axis reaches from -1 to 1."""
    low, high = places.min(0), places.max(0)
    moved: Array = (2 * (places - low) / np.maximum(high - low, 1e-9) - 1).astype(np.float32)
    return moved
