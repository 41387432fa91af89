"""Thumbnails of a page, the most needed first, until their bytes are spent."""

from collections.abc import Iterable
from pathlib import Path

from sslgh.explore.thumbnails import data_uri, thumbnail

# Characters of all thumbnails together: a page of 10,000 photos stays under 10 MB with its text and map.
BUDGET = 8_500_000
# Pixels of a side: of photos to label, of others that are shown, of those that only the map shows.
LARGE, MEDIUM, SMALL = 224, 128, 72


def thumbnails(
    folder: Path,
    files: list[str],
    wanted: Iterable[tuple[int, int]],
    *,
    budget: int = BUDGET,
) -> dict[int, str]:
    """``data:`` addresses of photos by position.

    Args:
        folder: The folder.
        files: Names of all photos.
        wanted: Position and side in pixels, the most needed first; a position counts once.
        budget: Characters of all together at most.
    """
    found: dict[int, str] = {}
    spent = 0
    for position, side in wanted:
        if position in found:
            continue
        picture = thumbnail(folder / files[position], side)
        if picture is None:
            continue
        address = data_uri(picture)
        if spent + len(address) > budget:
            break
        spent += len(address)
        found[position] = address
    return found
