"""Labels of photos from a table as spreadsheets and web pages write it.

The table decides how it is read: by the separator and the column with which the most cells name photos of the folder.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sslgh.data.image_set import DataError
from sslgh.data.list_table import LABELS, PATHS
from sslgh.recipe.errors import located, printable, some_of

# Names of the column of kinds in a first line; `select` and `look` write the first.
KINDS = ("kind", *LABELS)
SEPARATORS = (",", ";", "\t")
# A name in a cell, and a table of photos with long reasons, stay far below it.
LONGEST_CELL = 2**20


class TableRow(NamedTuple):
    """A line of a table: its number, from 1, and its cells."""

    number: int
    cells: list[str]


class _NamedPhotos(NamedTuple):
    """Photos of a folder as cells name them.

    Attributes:
        folder: The folder.
        roots: What absolute names, and those that begin with the folder, begin with: with slashes, to the last.
        names: Their names.
        composed: Name by its composed form (NFC), where no other name has the same: macOS gives some names decomposed,
            which look the same.
    """

    folder: Path
    roots: tuple[str, ...]
    names: frozenset[str]
    composed: Mapping[str, str]

    def name(self, cell: str) -> str | None:
        """The photo that a cell names, as it stands or else in composed form, or None."""
        if (name := _match(cell, self.roots, self.names)) is not None:
            return name
        same = _match(_composed(cell), self.roots, self.composed.keys())
        return None if same is None else self.composed[same]


def _named_photos(folder: Path, files: Collection[str]) -> _NamedPhotos:
    count = Counter(map(_composed, files))
    alone = {_composed(file): file for file in files if count[_composed(file)] == 1}
    roots = [f"{path.as_posix().rstrip('/')}/" for path in (folder, folder.resolve())]
    return _NamedPhotos(folder, tuple({*roots, *map(_composed, roots)}), frozenset(files), alone)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _match(cell: str, roots: Sequence[str], names: Set[str]) -> str | None:
    """The name that a cell writes in one of the usual ways, or None."""
    for text in dict.fromkeys((cell, cell.replace("\\", "/"))):
        # Paths take long for all cells of a large table.
        path = PurePosixPath(text).as_posix() if "./" in text or "//" in text else text
        for name in (text, path, *(path.removeprefix(root) for root in roots)):
            if name in names:
                return name
    return None


class Labels(NamedTuple):
    """Kinds of photos, in the order of the table.

    Attributes:
        kinds: Kind of each labeled photo by its name.
        unlabeled: Number of rows whose kind is empty.
    """

    kinds: dict[str, str]
    unlabeled: int

    @property
    def names(self) -> list[str]:
        """The kinds, sorted."""
        return sorted(set(self.kinds.values()))

    @property
    def alike(self) -> list[str]:
        """Kinds that are written in two ways, which differ in case only."""
        ways = Counter(name.casefold() for name in self.names)
        return [name for name in self.names if ways[name.casefold()] > 1]


def read_label_tables(paths: Sequence[Path], folder: Path, files: Collection[str]) -> Labels:
    """Kinds of several tables together; arguments and errors as for `read_labels`.

    Raises:
        DataError: If two tables give one photo two kinds, too.
    """
    kinds: dict[str, str] = {}
    source: dict[str, Path] = {}
    unlabeled = 0
    for path in paths:
        found = read_labels(path, folder, files)
        conflicts = [
            f"{file} ({kind}, in {source[file]} {kinds[file]})"
            for file, kind in found.kinds.items()
            if kinds.get(file, kind) != kind
        ]
        if conflicts:
            raise DataError(
                f"{printable(path)} gives {_files(len(conflicts))} another kind than a table before it: "
                f"{some_of(conflicts)}; keep one row for each"
            )
        source |= dict.fromkeys(found.kinds.keys() - source.keys(), path)
        kinds |= found.kinds
        unlabeled += found.unlabeled
    return Labels(kinds, unlabeled)


def read_labels(path: Path, folder: Path, files: Collection[str]) -> Labels:
    """Kinds of the photos of a folder.

    Args:
        path: CSV or TSV: separated by commas, semicolons or tabs, with a first line of names or, of two columns,
            without. Rows with an empty kind, and other columns, are allowed.
        folder: Folder of the photos; names in the table start there, or are absolute.
        files: Names of its photos.

    Raises:
        DataError: If it cannot be read, names files that are missing, or gives one photo two kinds.
    """
    photos = _named_photos(folder, files)
    rows, column = _rows(path, photos)
    kind = _kind_column(path, rows[0], column, photos)
    if kind is None:  # two columns without names
        kind = 1 - column
    elif len(rows) > 1:
        rows = rows[1:]
    return _labels(path, photos, rows, (column, kind))


def _labels(
    path: Path, photos: _NamedPhotos, rows: Sequence[TableRow], columns: tuple[int, int]
) -> Labels:
    kinds: dict[str, str] = {}
    missing, conflicts, unlabeled = [], [], 0
    for row in rows:
        file, kind = (row.cells[c].strip() if c < len(row.cells) else "" for c in columns)
        if not kind:
            unlabeled += 1
        elif (name := photos.name(file)) is None:
            missing.append(file)
        elif kinds.setdefault(name, kind) != kind:
            conflicts.append(f"{name} (line {row.number}: {kind}, before it {kinds[name]})")
    # Kinds are text; so is a name that no photo has.
    if not all(map(_is_text, [*kinds.values(), *missing])):
        raise _no_text(path)
    if missing:
        raise DataError(
            f"{printable(path)} labels {_files(len(missing))} not among the photos of {located(photos.folder)}: "
            f"{some_of(missing)}; give the folder where these names start, or take the rows out"
        )
    if conflicts:
        raise DataError(
            f"{printable(path)} gives {_files(len(conflicts))} two kinds: {some_of(conflicts)}; keep one row for each"
        )
    if not kinds:
        raise DataError(
            f"{printable(path)} holds no label ({unlabeled} rows, all without a kind); fill the kinds of some photos"
        )
    return Labels(kinds, unlabeled)


def _files(count: int) -> str:
    return "a file" if count == 1 else f"{count} files"


def _rows(path: Path, photos: _NamedPhotos) -> tuple[list[TableRow], int]:
    """Rows that are not blank, and the column that names photos."""
    text = _text(path)
    separators: tuple[str, ...] = SEPARATORS
    if declared := re.match(r'"?sep=(.)"?(?=\r?\n)', text):  # as Excel writes and reads it
        text, separators = text[declared.end() :], (declared[1],)
    best: tuple[int, list[TableRow], int] = (-1, [], 0)
    fault = ""
    for separator in separators:
        try:
            rows = _split(text, separator)
        except csv.Error as error:
            fault = str(error)
            continue
        for column in range(max((len(row.cells) for row in rows), default=0)):
            cells = [row.cells[column].strip() for row in rows if column < len(row.cells)]
            found = sum(photos.name(cell) is not None for cell in cells)
            # Of two columns that name as many the first; of two separators that fit, the one that separates.
            if (found, -column, len(rows[0].cells)) > (best[0], -best[2], _width(best[1])):
                best = (found, rows, column)
    _, rows, column = best
    if rows:
        return rows, _named_files(rows[0], column) if best[0] == 0 else column
    why = f"cannot be read ({printable(fault)}); close its quotes" if fault else "is empty"
    raise DataError(f"{located(path)} {why}; it needs a line 'file,kind', and a row for each photo")


def _width(rows: Sequence[TableRow]) -> int:
    return len(rows[0].cells) if rows else 0


def _named_files(header: TableRow, column: int) -> int:
    """The column that a first line calls a file, where no cell names a photo."""
    names = [cell.strip().lower() for cell in header.cells]
    return next((place for place, name in enumerate(names) if name in PATHS), column)


def _split(text: str, separator: str) -> list[TableRow]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found, begin = [], 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            found.append(TableRow(begin, cells))
        begin = reader.line_num + 1  # a quoted cell can hold line breaks
    return found


def _kind_column(path: Path, first: TableRow, column: int, photos: _NamedPhotos) -> int | None:
    """The column that the first line calls a kind; None if that line is already a row of two columns."""
    cells = [cell.strip().lower() for cell in first.cells]
    is_header = photos.name(first.cells[min(column, len(cells) - 1)].strip()) is None
    if is_header:
        for kind in KINDS:
            if kind in cells and cells.index(kind) != column:
                return cells.index(kind)
    if len(cells) == 2:
        return 1 - column if is_header and cells[column] in PATHS else None
    raise DataError(
        f"{printable(path)} has {len(cells)} {'column' if len(cells) == 1 else 'columns'} and none called 'kind'; name "
        "the columns in a first line, two of them 'file' and 'kind'"
    )


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{located(path)} cannot be read ({error.strerror}); give a table of files and kinds"
        ) from None
    # What spreadsheets call Unicode text.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        if wide:
            raise _no_text(path) from None
    # Names of files can be any bytes; Python's names of such photos, and lists of `look`, keep them in this way.
    return content.decode("utf-8-sig", errors="surrogateescape")


def _is_text(cell: str) -> bool:
    """Whether no byte of the cell was kept for want of a character."""
    return not any("\udc80" <= character <= "\udcff" for character in cell)


def _no_text(path: Path) -> DataError:
    return DataError(
        f"{located(path)} is not UTF-8 text; save it as CSV in UTF-8 from the spreadsheet"
    )
