"""What a folder of images holds and what is wrong with it, found by decoding every file."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from sslgh.data.decoding import (
    BROKEN,
    HASH_BYTES,
    decoded_rgb,
    hash_files,
    opened_image,
    orientation,
    reason,
)
from sslgh.data.folders import Splits, split_folders
from sslgh.data.image_set import DataError
from sslgh.data.loader import available_cores
from sslgh.data.tree import Tree, tree
from sslgh.recipe.errors import located
from sslgh.scan.processes import map_processes


class ScannedFile(NamedTuple):
    """Result of reading one image file.

    Attributes:
        path: Path of the file.
        bytes: Size of the file.
        format: Pillow's name of the format; empty if broken.
        width: Width in pixels as stored, before EXIF turns it.
        height: Height in pixels as stored.
        notes: How it is read, such as "CMYK", "12 of 16 bits", "transparent", "several frames",
            "EXIF-rotated".
        fault: Why it cannot be read; None if it can.
    """

    path: Path
    bytes: int
    format: str = ""
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()
    fault: str | None = None


class Place(NamedTuple):
    """Where an image lies: the name of its split's folder ("" without one) and of its class, if it has any."""

    split: str
    label: str | None


class Scan(NamedTuple):
    """A folder: what was found by name, what each image file holds, and groups of equal files.

    ``places``: split and class of each image that training or evaluation would see.
    """

    folder: Path
    splits: Splits
    tree: Tree
    files: list[ScannedFile]
    places: dict[Path, Place]
    duplicates: list[list[Path]]

    @property
    def broken(self) -> list[ScannedFile]:
        """The files that cannot be read."""
        return [file for file in self.files if file.fault is not None]

    @property
    def is_sound(self) -> bool:
        """Whether every image can be read and every folder be listed, and none is in two splits or classes."""
        return not (self.broken or self.tree.unreadable or self.leaks or self.conflicts)

    @property
    def leaks(self) -> list[list[Path]]:
        """Groups of equal files that lie in more than one split."""
        return [group for group in self.duplicates if len({p.split for p in self._of(group)}) > 1]

    @property
    def conflicts(self) -> list[list[Path]]:
        """Groups of equal files that lie under different classes."""
        found = [(group, {p.label for p in self._of(group)} - {None}) for group in self.duplicates]
        return [group for group, labels in found if len(labels) > 1]

    def _of(self, group: list[Path]) -> list[Place]:
        return [self.places[path] for path in group if path in self.places]


def scan_folder(folder: Path, *, workers: int | None = None) -> Scan:
    """Decode every image under a folder; a bar on stderr shows how far it is.

    Args:
        folder: Any tree of images.
        workers: Processes that decode; as many as there are cores by default.

    Raises:
        DataError: If ``folder`` is not a folder or cannot be listed.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path's raises where it must not look
        raise DataError(f"{located(folder)} is not a folder; give the folder that holds the images")
    splits = split_folders(folder)
    workers = workers or available_cores()
    found = tree(folder)
    paths = sorted(found.images, key=lambda path: path.relative_to(folder).parts)
    decoded = map_processes(examine, paths, crashed=_crashed, workers=workers)
    # Without a terminal there is no bar.
    files = list(tqdm(decoded, "decoding", len(paths), unit="file", disable=None, leave=False))
    return Scan(folder, splits, found, files, places(paths, splits), _duplicates(files))


def examine(path: Path) -> ScannedFile:
    """Read one file to the end."""
    size = _bytes(path)
    try:
        with opened_image(path) as image:
            width, height = image.size
            # Decoding turns TIFF upright; PNG, asked before, would decode, and a failure be lost.
            turned = image.format == "TIFF" and orientation(image) != 1
            _, notes = decoded_rgb(image)
            if turned or orientation(image) != 1:
                notes.append("EXIF-rotated")
            if _has_second_frame(image):
                notes.append("several frames")
            return ScannedFile(path, size, image.format or "", width, height, tuple(notes))
    except BROKEN as error:
        return ScannedFile(path, size, fault=reason(error))


def _crashed(path: Path) -> ScannedFile:
    return ScannedFile(
        path, _bytes(path), fault="decoding it ends the process, or takes all memory"
    )


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _has_second_frame(image: Image.Image) -> bool:
    if image.format == "MPO":  # a phone's JPEG with a preview or a map of depth behind it
        return False
    try:
        image.seek(1)
    except BROKEN:  # EOFError where there is none; the first frame is what is read
        return False
    return True


def _duplicates(files: Iterable[ScannedFile]) -> list[list[Path]]:
    """Groups of files with the same bytes; only files of equal size are read again."""
    by_size = defaultdict(list)
    for file in files:
        if file.fault is None:
            by_size[file.bytes].append(file.path)
    paths = [path for group in by_size.values() if len(group) > 1 for path in group]
    found = hash_files(tuple(paths))
    groups = defaultdict(list)
    for i, path in enumerate(paths):
        groups[found[i * HASH_BYTES : (i + 1) * HASH_BYTES]].append(path)
    groups.pop(bytes(HASH_BYTES), None)  # of files that have gone since they were decoded
    return [group for group in groups.values() if len(group) > 1]


def places(paths: Sequence[Path], splits: Splits) -> dict[Path, Place]:
    """Split and class of each image; without the images that belong to no split of a divided tree.

    Labels are those of `sslgh.data.folders.read_folder`: the folders right in the training split, if there are at least
    two and every image lies in one; another split then has classes too, if all its images lie in folders.
    """
    folders = list(splits.folders.values()) or [splits.root]
    found: dict[Path, Place] = {}
    shared = False  # whether the training split has classes
    for folder in sorted(folders, key=lambda folder: folder != splits.train):
        name = folder.name if splits.folders else ""
        inside = [path for path in paths if path.is_relative_to(folder)]
        parts = [path.relative_to(folder).parts for path in inside]
        several = shared or len({part[0] for part in parts}) > 1
        labeled = several and all(len(part) > 1 for part in parts)
        shared = shared or (labeled and folder == splits.train)
        for path, part in zip(inside, parts, strict=True):
            found[path] = Place(name, part[0] if labeled else None)
    return found
