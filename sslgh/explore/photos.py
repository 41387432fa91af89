"""The photos of a folder or a list, with what their files are known by."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.data.folders import find_images
from sslgh.data.image_set import DataError
from sslgh.data.tree import kinds
from sslgh.recipe.errors import located

NO_FILE = (-1, -1)


class Photos(NamedTuple):
    """N image files, unread.

    Attributes:
        paths: Paths of the files.
        names: Their names: relative to the folder, with slashes.
        stamps: Size (bytes) and time of change (ns) of each, int64 (N, 2); -1 for what is not there.
        left_out: Counts of the folder's other files by lower-case suffix, most first.
    """

    paths: list[Path]
    names: list[str]
    stamps: NDArray[np.int64]
    left_out: dict[str, int]


def find_photos(folder: Path) -> Photos:
    """All photos under a folder, sorted by their path, whatever their names; hidden ones and links as in training.

    Raises:
        DataError: If it is not a folder, holds no image, or a part of it cannot be listed.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path's raises where it must not look
        raise DataError(f"{located(folder)} is not a folder; give the folder that holds the photos")
    found = find_images(folder)
    names = [path.relative_to(folder).as_posix() for path in found.images]
    return Photos(found.images, names, _stamps(found.images), kinds(found))


def listed_photos(paths: Sequence[str | os.PathLike[str]]) -> Photos:
    """Photos by their paths, which are their names, in order.

    Raises:
        DataError: If there is none.
    """
    if not paths:
        raise DataError("no photo is given; give paths, or the folder that holds the photos")
    files = [Path(path).expanduser() for path in paths]
    return Photos(files, [os.fspath(path) for path in paths], _stamps(files), {})


def _stamps(paths: Sequence[Path]) -> NDArray[np.int64]:
    return np.array([_stamp(path) for path in paths], dtype=np.int64).reshape(-1, 2)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return NO_FILE
    return status.st_size, status.st_mtime_ns
