"""Split and class of each scanned image; equal files in different splits or classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sslgh.data.folders import Splits


class Place(NamedTuple):
    """Where an image lies: the name of its split's folder ("" without one) and of its class, if it has any."""

    split: str
    label: str | None


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


def leaks(duplicates: list[list[Path]], place: dict[Path, Place]) -> list[list[Path]]:
    """Groups of equal files that lie in more than one split."""
    return [group for group in duplicates if len({place[p].split for p in group if p in place}) > 1]


def conflicts(duplicates: list[list[Path]], place: dict[Path, Place]) -> list[list[Path]]:
    """Groups of equal files that lie under different classes."""
    labels = [{place[p].label for p in group if p in place} - {None} for group in duplicates]
    return [group for group, found in zip(duplicates, labels, strict=True) if len(found) > 1]
