"""The tables that `look` writes, for spreadsheets and programs.

Names are written as they are: a name with a comma, a quote or a line break is quoted as CSV has it.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

from sslgh.explore.findings import Findings

GROUP_COLUMNS = ("group", "photos", "share", "low", "high", "found_again", "resamples", "typical")
PHOTO_COLUMNS = (
    "file",
    "group",
    "place_in_group",
    "copies",
    "strangeness",
    "odd",
    "faults",
    "width",
    "height",
    "split",
)
COPY_COLUMNS = ("copies", "file", "width", "height", "split", "leak")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8; what was there stays if that fails."""
    temporary = path.with_name(path.name + ".tmp")
    # Names that are no text keep their bytes.
    with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    temporary.replace(path)


def unfilled(path: Path, columns: Sequence[str]) -> Path:
    """Where a list with an empty second column can be written without touching one that was filled in or changed."""
    places = chain([path], (path.with_stem(f"{path.stem}_{number}") for number in count(2)))
    return next(place for place in places if not place.exists() or not _is_filled(place, columns))


def _is_filled(path: Path, columns: Sequence[str]) -> bool:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    return tuple(head) != tuple(columns) or any(len(row) < 2 or row[1].strip() for row in rows)


def write_tables(found: Findings, out: Path) -> None:
    """Write photos.csv, groups.csv and duplicates.csv into a folder."""
    write_table(out / "photos.csv", PHOTO_COLUMNS, _photo_rows(found))
    write_table(out / "groups.csv", GROUP_COLUMNS, _group_rows(found))
    write_table(out / "duplicates.csv", COPY_COLUMNS, _copy_rows(found))


def _photo_rows(found: Findings) -> Iterable[tuple[object, ...]]:
    place = {int(i): n for group in found.groups.groups for n, i in enumerate(group.members, 1)}
    copies = found.copies.group_of(len(found.files)).tolist()
    odd = set(found.odd.tolist())
    for i, file in enumerate(found.files):
        faults = " + ".join(name for name, mask in found.faults.items() if mask[i])
        yield (
            file,
            int(found.label[i]) + 1,
            place[i],
            copies[i] + 1 if copies[i] >= 0 else "",
            _number(float(found.strangeness[i])),
            "yes" if i in odd else "",
            faults,
            *(int(side) or "" for side in found.sides[i]),
            found.split[i],
        )


def _group_rows(found: Findings) -> Iterable[tuple[object, ...]]:
    for number, group in enumerate(found.groups.groups, 1):
        shares = (_number(value) for value in (group.share, group.low, group.high))
        typical = found.files[int(group.members[0])]
        yield (number, len(group.members), *shares, group.found, group.resamples, typical)


def _copy_rows(found: Findings) -> Iterable[tuple[object, ...]]:
    leaks = set(found.leaks)
    for number, group in enumerate(found.copies.groups):
        for i in group:
            sides = (int(side) or "" for side in found.sides[i])
            leak = "yes" if number in leaks else ""
            yield (number + 1, found.files[i], *sides, found.split[i], leak)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
