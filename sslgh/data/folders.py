"""Trees of image files: flat, nested, or one folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sslgh.data.images import DataError, ImageSet

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
)
# Names a folder may have beside "train" in a tree that is divided into splits.
SPLITS = frozenset({"train", "test", "val", "valid", "validation"})


def split_folders(root: Path, test_root: Path | None) -> tuple[Path, Path | None]:
    """The folders of training and test images.

    A tree is divided when it has a folder ``train`` and no folder that is not named like a split: a
    class that happens to be called "train" does not hide the others. A given ``test_root`` goes first.

    Raises:
        DataError: If ``root`` or ``test_root`` is not a folder, or they are the same.
    """
    for key, folder in (("data.root", root), ("data.test_root", test_root)):
        if folder is not None and not folder.is_dir():
            raise DataError(
                f"{key} {folder} is not a folder; give the folder that holds the images"
            )
    if test_root is not None and test_root.samefile(root):
        raise DataError(f"data.test_root {test_root} is data.root; give other images to test on")
    beside = {entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."}
    if "train" not in beside or not beside <= SPLITS:
        return root, test_root
    own_test = root / "test" if "test" in beside else None
    return root / "train", test_root or own_test


def read_folder(
    folder: Path, *, without: Path | None = None, classes: tuple[str, ...] = ()
) -> ImageSet:
    """All images under ``folder``, sorted by their path.

    Labels are the names of the immediate subfolders when every image lies in one and there are at
    least two; any other tree is unlabelled. Hidden files and folders are skipped, links are followed,
    and a folder that is reached twice counts once.

    Args:
        folder: The folder.
        without: A folder inside it that belongs to another split.
        classes: Classes that are already known (of the training set). A test set may lack some of
            them but must not hold others.

    Raises:
        DataError: If there is no image, a link leads nowhere, or the classes do not agree.
    """
    paths = sorted(find_images(folder, without), key=lambda path: path.relative_to(folder).parts)
    if not paths:
        endings = " ".join(sorted(EXTENSIONS))
        raise DataError(
            f"{folder} holds no image; point to a folder with files that end in {endings}"
        )
    relative = [path.relative_to(folder) for path in paths]
    names = tuple(path.as_posix() for path in relative)
    nested = all(len(path.parts) > 1 for path in relative)
    found = sorted({path.parts[0] for path in relative}) if nested else []
    class_names = classes or (tuple(found) if len(found) > 1 else ())
    if not class_names:
        return ImageSet(tuple(paths), None, (), names)
    _check_classes(folder, found, class_names)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[path.parts[0]] for path in relative], dtype=np.int64)
    return ImageSet(tuple(paths), labels, class_names, names)


def _check_classes(folder: Path, found: list[str], classes: tuple[str, ...]) -> None:
    if not found:
        raise DataError(
            f"{folder} holds images outside class folders, but the training set has {len(classes)} "
            f"classes ('{classes[0]}', ...); put each image into the folder of its class"
        )
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has {len(unknown)} classes that the training set lacks (first '{unknown[0]}'); "
            "give both the same class folders"
        )


def find_images(folder: Path, without: Path | None = None) -> Iterator[Path]:
    """Image files under ``folder``, through links, each folder once.

    Raises:
        DataError: If a folder cannot be listed or a link leads nowhere.
    """
    seen = {_identity(without)} if without is not None else set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if _identity(current) in seen:
            continue
        seen.add(_identity(current))
        for entry in _entries(current):
            path = Path(entry.path)
            if path.is_dir():
                waiting.append(path)
            elif path.suffix.lower() in EXTENSIONS:
                yield _existing(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is visible in a folder, last name first (the caller takes folders from the end)."""
    try:
        with os.scandir(folder) as listing:
            visible = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}); allow reading it"
        ) from error
    return sorted(visible, key=lambda entry: entry.name, reverse=True)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is no file (a link that leads nowhere?); restore or remove it")
    return path


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
