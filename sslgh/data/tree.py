"""Every file under a folder: images, whatever they are called, and what is left out, by its kind."""

import errno
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sslgh.data.decoding import hold_images, reads_heic

# Names of images, which are taken without a look inside: a million photos are listed, not opened. A file
# of any other name is an image if it begins as one.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".png", ".apng", ".webp", ".bmp", ".gif"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpf", ".jpx"}
)
# Those of iPhones, which need a package.
HEIC = frozenset({".heic", ".heif", ".hif"})
# Photos that Pillow alone does not read. Raw ones begin as TIFF does and hold a small preview, which is not
# the photo: they are not looked into.
UNREAD = frozenset(
    {*HEIC, ".jxl", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw"}
    | {".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".erf", ".kdc"}
    | {".mrw", ".raw"}
)
# Folders that systems make next to photos: copies in small, resource forks, deleted files.
SYSTEM = frozenset(
    {"__MACOSX", "@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found"}
    | {"System Volume Information"}
)


class Tree(NamedTuple):
    """Everything under a folder.

    Attributes:
        images: Files named as images, unread (links that lead nowhere, pipes and files without permission
            are among them, to be found broken when they are read), and files that begin as an image.
        others: Files that do not.
        dangling: Links not named as an image that lead nowhere.
        unreadable: Folders that cannot be listed, and why.
        hidden: Hidden files and folders and those of the system, which are not looked into.
    """

    images: list[Path]
    others: list[Path]
    dangling: list[Path]
    unreadable: list[tuple[Path, str]]
    hidden: list[Path]


def tree(folder: Path, without: Collection[Path] = ()) -> Tree:
    """Walk a folder through links, each folder once.

    Args:
        folder: Folder to start from.
        without: Folders that are left out.
    """
    found = Tree([], [], [], [], [])
    seen = {_identity(path) for path in without}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            if _identity(current) in seen:
                continue
            seen.add(_identity(current))
            entries = _visible(current, found)
        except OSError as error:
            found.unreadable.append((current, error.strerror or str(error)))
            continue
        waiting.extend(Path(entry.path) for entry in entries if not _sorted_in(entry, found))
    return _looked_into(found)


def visible_folders(folder: Path) -> list[str]:
    """Sorted names of the visible folders right in a folder.

    Raises:
        OSError: If it cannot be listed, or an entry be decided.
    """
    entries = _visible(folder, Tree([], [], [], [], []))
    return sorted(entry.name for entry in entries if _is_folder(entry))


def kinds(found: Tree) -> dict[str, int]:
    """Counts of what is left out, by lower-case suffix ("" without one), most first."""
    counts = Counter(path.suffix.lower() for path in found.others)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _looked_into(found: Tree) -> Tree:
    """Files of unknown names that hold an image are moved to the images."""
    unknown = [path for path in found.others if path.suffix.lower() not in UNREAD]
    images = set(hold_images(tuple(unknown)))
    return found._replace(
        images=[*found.images, *(path for path in unknown if path in images)],
        others=[path for path in found.others if path not in images],
    )


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
    suffix = path.suffix.lower()
    is_image = suffix in SUFFIXES or (suffix in HEIC and reads_heic())
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


def _visible(folder: Path, found: Tree) -> "list[os.DirEntry[str]]":
    """What is visible in a folder, last name first (folders are popped from the end)."""
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
    visible = [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM]
    if len(visible) < len(entries):
        kept = {entry.name for entry in visible}
        found.hidden.extend(Path(e.path) for e in entries if e.name not in kept)
    return visible


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
