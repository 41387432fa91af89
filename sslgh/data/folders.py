"""Trees of image files: flat, nested, or one folder per class."""

import errno
import functools
import logging
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslgh.data.image_set import DataError, ImageSet
from sslgh.distributed import dist_info
from sslgh.recipe.errors import printable

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
)
# Photos that Pillow alone does not read.
UNREAD = frozenset({".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
# Names a folder may have next to "train" in a tree that is divided into splits.
SPLITS = frozenset({"train", "test", "val", "valid", "validation"})


def split_folders(root: Path, test_root: Path | None) -> tuple[Path, Path | None]:
    """The folders of training and test images.

    A tree is divided when it has a folder ``train`` and no folder that is not named like a split: a
    class that happens to be called "train" does not hide the others. A given ``test_root`` takes precedence.

    Raises:
        DataError: If ``root`` or ``test_root`` is not a folder or cannot be listed, or they are the
            same.
    """
    for key, folder in (("data.root", root), ("data.test_root", test_root)):
        # os.path: unlike Path's, it is False where a folder above must not be entered.
        if folder is not None and not os.path.isdir(folder):  # noqa: PTH112
            raise DataError(
                f"{key} {printable(folder)} is not a folder; give the folder that holds the images"
            )
    if test_root is not None and test_root.samefile(root):
        raise DataError(
            f"data.test_root {printable(test_root)} is data.root; give other images to test on"
        )
    siblings = _subfolders(root)
    if "train" not in siblings or not siblings <= SPLITS:
        return root, test_root
    own_test = root / "test" if "test" in siblings else None
    return root / "train", test_root or own_test


def read_folder(
    folder: Path, *, without: Path | None = None, classes: tuple[str, ...] = ()
) -> ImageSet:
    """All images under ``folder``, sorted by their path.

    Labels are the names of the immediate subfolders when every image lies in one and there are at
    least two; any other tree is unlabeled. Hidden files and folders are skipped, links are followed,
    and a folder that is reached twice counts once.

    Args:
        folder: The folder.
        without: A folder inside it that belongs to another split.
        classes: Classes that are already known (of the training set). A test set may lack some of
            them but must not hold others.

    What cannot be read stays in the list as long as one file exists: a link that leads nowhere or a
    file without permission is found, and named, when it is read.

    Raises:
        DataError: If there is no image, none exists, a folder cannot be listed, or the classes do not
            agree.
    """
    paths = sorted(_find_images(folder, without), key=lambda path: path.relative_to(folder).parts)
    _check_found(folder, paths)
    relative = [path.relative_to(folder) for path in paths]
    names = tuple(path.as_posix() for path in relative)
    strays = [path for path in relative if len(path.parts) == 1]
    if 0 < len(strays) < len(relative) / 2:
        _warn_once(
            f"{len(strays)} of the images in {printable(folder)} lie in no folder of a class, the first is "
            f"{printable(strays[0])}: none has a label; move each into the folder of its class if labels are wanted"
        )
    nested = not strays
    found = sorted({path.parts[0] for path in relative}) if nested else []
    class_names = classes or (tuple(found) if len(found) > 1 else ())
    if not class_names:
        return ImageSet(tuple(paths), None, (), names)
    _check_classes(folder, found, class_names)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[path.parts[0]] for path in relative], dtype=np.int64)
    return ImageSet(tuple(paths), labels, class_names, names)


def _check_found(folder: Path, paths: list[Path]) -> None:
    if not paths:
        endings = " ".join(sorted(EXTENSIONS))
        raise DataError(
            f"{printable(folder)} holds no image; point to a folder with files that end in {endings}"
        )
    # Ends at the first that can: nothing is spent on a sound folder.
    if not any(os.access(path, os.R_OK) for path in paths):
        raise DataError(
            f"{printable(folder)} holds {len(paths)} images of which none can be opened (first "
            f"{printable(paths[0])}); restore what their links lead to, or allow reading them"
        )


def _check_classes(folder: Path, found: list[str], classes: tuple[str, ...]) -> None:
    if not found:
        raise DataError(
            f"{printable(folder)} holds images outside class folders, but the training set has "
            f"{len(classes)} classes ('{printable(classes[0])}', ...); put each image into the "
            "folder of its class"
        )
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise DataError(
            f"{printable(folder)} has {len(unknown)} classes that the training set lacks (first "
            f"'{printable(unknown[0])}'); give both the same class folders"
        )


def _find_images(folder: Path, without: Path | None) -> list[Path]:
    found = tree(folder, without)
    if found.unreadable:
        path, reason = found.unreadable[0]
        raise _unlistable(path, reason)
    endings = Counter(path.suffix.lower() for path in found.others)
    if unread := {ending: endings[ending] for ending in sorted(UNREAD & endings.keys())}:
        _warn_once(
            f"{sum(unread.values())} photos in {printable(folder)} are left out by their extension "
            f"({', '.join(unread)}); convert them to JPEG or PNG to use them"
        )
    return found.images


@functools.cache
def _warn_once(message: str) -> None:
    """A command lists its folders several times."""
    if dist_info().rank == 0:
        log.warning("%s", message)


def _subfolders(folder: Path) -> set[str]:
    """Names of the visible folders right in a folder."""
    try:
        with os.scandir(folder) as listing:
            visible = [entry for entry in listing if not entry.name.startswith(".")]
            return {entry.name for entry in visible if _is_folder(entry)}
    except OSError as error:
        raise _unlistable(Path(error.filename or folder), error.strerror or str(error)) from error


def _unlistable(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{printable(folder)} cannot be listed ({reason}); allow reading it, or take it out of the data"
    )


class Tree(NamedTuple):
    """Everything visible under a folder; hidden files and folders are left out.

    Attributes:
        images: Files by their extension, unread: links that lead nowhere, pipes and files without
            permission are among them, to be found broken when they are read.
        others: Files of other extensions.
        dangling: Links without an image's extension that lead nowhere.
        unreadable: Folders that cannot be listed, and why.
    """

    images: list[Path]
    others: list[Path]
    dangling: list[Path]
    unreadable: list[tuple[Path, str]]


def tree(folder: Path, without: Path | None = None) -> Tree:
    """Walk a folder through links, each folder once.

    Args:
        folder: Folder to start from.
        without: A folder inside it that is left out.
    """
    found = Tree([], [], [], [])
    seen = set() if without is None else {_identity(without)}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            if _identity(current) in seen:
                continue
            seen.add(_identity(current))
            entries = _visible(current)
        except OSError as error:
            found.unreadable.append((current, error.strerror or str(error)))
            continue
        waiting.extend(Path(entry.path) for entry in entries if not _sorted_in(entry, found))
    return found


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or leads to one.

    Raises:
        OSError: If it cannot be decided, as when a link leads through a folder without permission.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:  # a link to itself, or through a file
            return False
        raise


def _sorted_in(entry: "os.DirEntry[str]", found: Tree) -> bool:
    """Put a file where it belongs; False for a folder, which is still to be walked."""
    path = Path(entry.path)
    is_image = path.suffix.lower() in EXTENSIONS
    try:
        if _is_folder(entry):
            return False
    except OSError as error:
        if not is_image:
            found.unreadable.append((path, error.strerror or str(error)))
            return True
    if is_image:
        found.images.append(path)
    elif entry.is_symlink() and not path.exists():
        found.dangling.append(path)
    else:
        found.others.append(path)
    return True


def _visible(folder: Path) -> "list[os.DirEntry[str]]":
    """What is visible in a folder, last name first (folders are popped from the end)."""
    with os.scandir(folder) as listing:
        entries = [entry for entry in listing if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name, reverse=True)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
