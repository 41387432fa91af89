"""Folders that commands on photos write into: what is refused, and how they are made."""

import os
from pathlib import Path
from typing import NamedTuple

from sslgh.data.image_set import DataError
from sslgh.recipe.errors import located, printable


class Owner(NamedTuple):
    """A command that writes into a folder of its own, option ``--out``.

    Attributes:
        command: Name of the command.
        mark: File by which its folder is known.
        begun: Beginnings of the names of what a call that was stopped leaves before there is the mark.
    """

    command: str
    mark: str
    begun: tuple[str, ...] = ()


def next_to(photos: Path, what: str) -> Path:
    """The folder for results where none is named: next to the photos, and named after them.

    Examples:
        >>> next_to(Path("/home/birds"), "look").as_posix()
        '/home/birds-look'
    """
    photos = photos.expanduser().resolve()
    return photos.with_name(f"{photos.name or 'photos'}-{what}")


def check_results_folder(photos: Path, out: Path, owner: Owner) -> None:
    """Refuse a folder for results that would do harm; nothing is made yet.

    Raises:
        DataError: If ``photos`` is no folder, or ``out`` lies among them, cannot be written, or holds other files than
            those of the owner.
    """
    photos, place = photos.expanduser().resolve(), out.expanduser().resolve()
    if not os.path.isdir(photos):  # noqa: PTH112 - Path's raises where it must not look
        raise DataError(f"{located(photos)} is not a folder; give the folder that holds the photos")
    if place.is_relative_to(photos):
        raise DataError(
            f"{printable(out)} lies inside {printable(photos)}, whose photos its pictures would join; give --out another"
            " folder"
        )
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not (os.path.isdir(there) and os.access(there, os.R_OK | os.W_OK)):  # noqa: PTH112
        raise DataError(cannot_be_written(out))
    if there == place and not _is_free(place, owner):
        raise DataError(
            f"{printable(out)} holds files that are not of {owner.command}, which might be overwritten; give --out a new"
            " or empty folder"
        )


def cannot_be_written(out: Path) -> str:
    """The sentence on a folder that cannot be made or written."""
    return f"{printable(out)} cannot be written; give --out a folder that can be"


def _is_free(place: Path, owner: Owner) -> bool:
    names = {path.name for path in place.iterdir()}
    return owner.mark in names or all(name.startswith(owner.begun) for name in names)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, if it is missing.

    Raises:
        OSError: If it cannot be made; one sentence.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{located(folder)} cannot be made ({error.strerror}); write to another place"
        ) from None
