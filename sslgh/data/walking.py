"""What lies under a folder: images, other files, and what cannot be listed."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
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
        folder: Where to start.
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


def is_folder(entry: "os.DirEntry[str]") -> bool:
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
        if is_folder(entry):
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
    """What is visible in a folder, last name first (folders are taken from the end)."""
    with os.scandir(folder) as listing:
        entries = [entry for entry in listing if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name, reverse=True)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
