"""Classes of a scanned tree as training sees them, and equal files in places that exclude each other."""

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

    Labels are those of `sslgh.data.folders.read_folder`: the folders right in a split, when there are at least two and
    every image of the split lies in one.
    """
    folders = splits.folders.values() or [splits.root]
    found: dict[Path, Place] = {}
    for folder in folders:
        name = folder.name if splits.folders else ""
        inside = [path for path in paths if path.is_relative_to(folder)]
        parts = [path.relative_to(folder).parts for path in inside]
        classes = {part[0] for part in parts}
        labeled = len(classes) > 1 and all(len(part) > 1 for part in parts)
        for path, part in zip(inside, parts, strict=True):
            found[path] = Place(name, part[0] if labeled else None)
    return found


def leaks(duplicates: list[list[Path]], place: dict[Path, Place]) -> list[list[Path]]:
    """Groups of equal files of which one lies in a split for training and one in another."""
    return [group for group in duplicates if len({place[p].split for p in group if p in place}) > 1]


def conflicts(duplicates: list[list[Path]], place: dict[Path, Place]) -> list[list[Path]]:
    """Groups of equal files that lie under different classes."""
    labels = [{place[p].label for p in group if p in place} - {None} for group in duplicates]
    return [group for group, found in zip(duplicates, labels, strict=True) if len(found) > 1]
