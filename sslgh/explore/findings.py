"""Everything that is found in a folder of photos from their features, without a label.

Shapes: N photos, F features, D dimensions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.explore.directions import directions
from sslgh.explore.groups import Groups, find_groups
from sslgh.explore.leaks import leaking, split_of
from sslgh.explore.near_copies import Copies, near_copies
from sslgh.explore.neighbors import Neighbors, nearest_neighbors
from sslgh.explore.outliers import odd_photos, strangeness
from sslgh.explore.picture_quality import picture_faults
from sslgh.explore.tail import Tail, tail

# Nearest others that are kept: ten are shown for a photo, and copies are linked through them.
NEAREST = 15


class Findings(NamedTuple):
    """What is known of N photos.

    Attributes:
        files: Names, relative to the folder.
        rows: Directions, shape (N, D).
        neighbors: Nearest others of each photo.
        copies: Groups of near copies.
        leaks: Numbers of those groups that lie in several splits.
        split: Name of the split's folder of each photo; "" where there is none.
        groups: Groups that look alike, the largest first.
        label: Group of each photo, shape (N,).
        tail: How unequal the groups are.
        strangeness: Outlier score of each photo, shape (N,).
        odd: Positions of the outliers, the strangest first.
        faults: Masks (N,) of what is wrong with the pictures themselves, by name.
        sides: Width and height in pixels, shape (N, 2); 0 where unknown.
    """

    files: list[str]
    rows: NDArray[np.float32]
    neighbors: Neighbors
    copies: Copies
    leaks: list[int]
    split: list[str]
    groups: Groups
    label: NDArray[np.int64]
    tail: Tail
    strangeness: NDArray[np.float32]
    odd: NDArray[np.int64]
    faults: dict[str, NDArray[np.bool_]]
    sides: NDArray[np.int64]


def find_all(
    folder: Path,
    files: list[str],
    features: NDArray[np.float32],
    facts: Mapping[str, NDArray[Any]],
    *,
    seed: int = 0,
) -> Findings:
    """Groups, copies, leaks, outliers and faults of photos.

    Args:
        folder: The folder that was read; only its splits are looked at.
        files: N names.
        features: Shape (N, F).
        facts: Arrays (N,) of `sslgh.explore.photo_facts`; those that are missing are left out.
        seed: Seed of clustering and resamples.
    """
    rows = directions(features)
    neighbors = nearest_neighbors(rows, NEAREST)
    copies = Copies.none()
    if "hash" in facts:
        copies = near_copies(neighbors, facts["hash"].astype(np.uint64), features)
    split = split_of(folder, files)
    groups = find_groups(rows, seed=seed)
    score = strangeness(neighbors, copies.group_of(len(files)))
    return Findings(
        files,
        rows,
        neighbors,
        copies,
        leaking(copies.groups, split),
        split,
        groups,
        groups.labels(len(files)),
        tail([len(group.members) for group in groups.groups]),
        score,
        odd_photos(score),
        picture_faults(dict(facts)),
        _sides(facts, len(files)),
    )


def _sides(facts: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.int64]:
    unknown = np.zeros(count, dtype=np.int64)
    return np.stack([facts.get(name, unknown) for name in ("width", "height")], 1).astype(np.int64)
