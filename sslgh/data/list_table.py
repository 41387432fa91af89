"""Columns of a list of images: plain lines ``path label``, or a table as spreadsheets write it.

The list itself decides how it is read: by the form with which the most paths, of a sample, are files.
Plain lines are therefore read as such even where their paths hold commas.
"""

import csv
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sslgh.data.image_set import DataError
from sslgh.recipe.errors import printable, shown

# Names of columns that are known in a first line; of several labels the first in this order is taken.
PATHS = frozenset(
    {"path", "file_path", "filepath", "image_path", "img_path", "filename"}
    | {"file_name", "file", "image", "img"}
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "species")
# A tab is in no path, and a semicolon in fewer than a comma. The space is for paths in quotes.
DELIMITERS = ("\t", ";", ",", " ")
# How many lines, and columns, are looked at to decide the form.
SAMPLE, MOST_COLUMNS = 100, 16

_LABELED = re.compile(r".*\S\s+\d+\s*")
_LIKE_DATA = re.compile(r"[./\\]|[\s,;]\d+$").search
Split = Callable[[str], list[str]]


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
        number: Line number, from 1.
        text: Line without its line break.
    """

    number: int
    text: str

    def __str__(self) -> str:
        return f"line {self.number} ({shown(self.text.strip())})"


class Table(NamedTuple):
    """The columns of a list of N images.

    Attributes:
        lines: N lines, for messages.
        paths: N paths, as written in the list.
        labels: N labels as written, or None.
    """

    lines: Sequence[Line]
    paths: list[str]
    labels: list[str] | None


class Form(NamedTuple):
    """A way to read the lines.

    Attributes:
        split: Function from a line to its cells.
        column: Position of the path among them.
        slashes: Whether a backslash separates folders.
        found: Number of sampled paths that are files.
    """

    split: Split
    column: int = 0
    slashes: bool = False
    found: int = 0

    def path(self, cells: Sequence[str]) -> str:
        """The path of a row, empty where the row is too short."""
        path = cells[self.column] if self.column < len(cells) else ""
        return path.replace("\\", "/") if self.slashes else path


def read_table(where: str, text: str, is_file: Callable[[str], bool]) -> Table:
    """The columns of a list.

    Args:
        where: Name of the list, for messages.
        text: Content of the list.
        is_file: Whether a path of the list leads to a file.

    Raises:
        DataError: If there is no line, or one has other columns than a path and a label.
    """
    lines = [Line(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{where} is empty; give a file of lines 'path label'")
    named = len(lines) > 1 and _is_header(lines[0].text.strip(), is_file)
    body = lines[1:] if named else lines
    form = _form([line.text for line in body], is_file)
    rows = [_cells(where, line, form.split) for line in body]
    if named:
        form, label = _named_columns(where, lines[0], form)
    else:
        label = _label_column(where, body[0], rows[0], form)
    width = max(form.column, label or 0)
    for line, cells in zip(body, rows, strict=True):
        if len(cells) != len(rows[0]) or len(cells) <= width:
            raise _uneven(where, line, cells, body[0], rows[0])
    labels = None if label is None else [cells[label].strip() for cells in rows]
    return Table(body, [form.path(cells) for cells in rows], labels)


def _cells(where: str, line: Line, split: Split) -> list[str]:
    try:
        return split(line.text)
    except csv.Error as error:
        raise DataError(
            f"{where} {line} cannot be read as comma-separated values ({printable(str(error))}); "
            "close its quotes"
        ) from None


def _uneven(
    where: str, line: Line, cells: Sequence[str], first: Line, expected: Sequence[str]
) -> DataError:
    columns = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
    return DataError(
        f"{where} {line} has {columns}, but line {first.number} has {len(expected)}; give every line a path "
        "and one label, and put a path or class that holds the separator in double quotes"
    )


def _is_header(text: str, is_file: Callable[[str], bool]) -> bool:
    """Whether a first line names columns: a name that is known, and nothing like a path or a number."""
    known = PATHS.union(LABELS) & set(_names(text))
    return bool(known) and not _LIKE_DATA(text) and not is_file(text)


def _names(text: str) -> list[str]:
    """Names of columns in a first line, whatever separates them."""
    separator = r"[\t,;]" if re.search(r"[\t,;]", text) else r"\s+"
    return [name.strip(" \"'").lower() for name in re.split(separator, text)]


def _named_columns(where: str, header: Line, form: Form) -> tuple[Form, int | None]:
    """The form with the column of the paths, and that of the labels."""
    names = _names(header.text)
    paths = [column for column, name in enumerate(names) if name in PATHS]
    if not form.found and paths:
        form = form._replace(column=paths[0])
    labels = [
        place for label in LABELS if label in names and (place := names.index(label)) != form.column
    ]
    if labels or len(names) == 1:
        return form, labels[0] if labels else None
    raise DataError(
        f"{where} {header} names no column of labels; call one of them 'label', or leave only the paths"
    )


def _label_column(where: str, line: Line, cells: Sequence[str], form: Form) -> int | None:
    """The column of the labels where no line names it: the other one of two."""
    if len(cells) <= 2:
        return 1 - form.column if len(cells) == 2 else None
    raise DataError(
        f"{where} {line} has {len(cells)} columns, expected a path and one label; put what holds the separator "
        "in double quotes, leave other columns out, or name all in a first line, two of them 'path' and 'label'"
    )


def _form(lines: Sequence[str], is_file: Callable[[str], bool]) -> Form:
    """The form by which the most paths of a sample are files, the plain one where it does as well."""
    plain, other = (_words, _whole) if all(map(ends_with_label, lines)) else (_whole, _words)
    splits: list[Split] = [plain, *(functools.partial(_delimited, d) for d in DELIMITERS), other]
    sample = lines[:: -(-len(lines) // SAMPLE)]
    best = Form(plain)
    for form in _candidates(splits, sample):
        found = sum(is_file(form.path(_quietly(form.split, text))) for text in sample)
        if found > best.found:
            best = form._replace(found=found)
        if found == len(sample):
            break
    return best if best.found else Form(_likely(splits, sample))


def _candidates(splits: Sequence[Split], sample: Sequence[str]) -> Iterator[Form]:
    backslashes = any("\\" in text for text in sample)
    for slashes in (False, True) if backslashes else (False,):
        for split in splits:
            columns = max(len(_quietly(split, text)) for text in sample)
            for column in range(min(columns, MOST_COLUMNS)):
                yield Form(split, column, slashes)


def _likely(splits: Sequence[Split], sample: Sequence[str]) -> Split:
    """How lines seem to be meant whose paths lead nowhere, for the message that shows the paths."""
    plain, *delimited = splits[: len(DELIMITERS)]
    if plain is _words and not any(re.search(r"[,;]\s+\S+$", text) for text in sample):
        return plain
    for split in delimited:
        widths = {len(_quietly(split, text)) for text in sample}
        if len(widths) == 1 and widths != {1}:
            return split
    return plain


def ends_with_label(text: str) -> bool:
    """Whether a line is of the published form ``path label``."""
    return _LABELED.fullmatch(text) is not None


def _quietly(split: Split, text: str) -> list[str]:
    try:
        return split(text)
    except csv.Error:
        return []


def _whole(text: str) -> list[str]:
    return [text.strip()]


def _words(text: str) -> list[str]:
    """The path, which may hold spaces, and the last word."""
    return text.strip().rsplit(maxsplit=1)


def _delimited(delimiter: str, text: str) -> list[str]:
    reader = csv.reader([text.strip(" ")], delimiter=delimiter, skipinitialspace=True, strict=True)
    return [cell.strip() for cell in next(reader)]
