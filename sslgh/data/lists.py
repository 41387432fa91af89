"""Lists of files, as ImageNet-LT, Places-LT and iNaturalist are published, and tables of paths and classes."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sslgh.data.image_set import DataError, ImageSet, check_classes
from sslgh.data.list_table import Line, Table, ends_with_label, read_table
from sslgh.recipe.errors import located, printable, shown, some_of

_NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d+)(?:\.(?P<fraction>\d*))?")
# What programs write for a value that is missing.
_MISSING = frozenset({"", "nan", "null", "none", "n/a", "na"})


def read_list(file: Path, root: Path, *, key: str, classes: tuple[str, ...] = ()) -> ImageSet:
    """The images of a list with one ``path [label]`` per line, in that order.

    Plain lines, whose paths may contain spaces, or columns separated by commas, semicolons or tabs, in
    quotes where needed, under a first line of names or not. Labels are class numbers, which may leave gaps
    (there are max + 1 classes, named by their number), or class names, whose classes are sorted by name.

    Args:
        file: The list, UTF-8; blank lines are skipped.
        root: Folder the paths start from.
        key: The recipe's name for the list, for messages.
        classes: Classes that are already known (of the training list).

    Raises:
        DataError: If the list cannot be read, is empty, names missing files or unknown classes, or
            labels that are no classes.
    """
    where = f"{key} {printable(file)}"
    table = read_table(where, _text(file, key), lambda path: _is_file(root / path))
    paths = tuple(root / path for path in table.paths)
    _check_files(where, table, paths, root)
    names = tuple(table.paths)
    if table.labels is None:
        return ImageSet(paths, None, (), names)
    # Of each label as it is written its first line, for messages.
    first: dict[str, Line] = {}
    for line, label in zip(table.lines, table.labels, strict=True):
        first.setdefault(label, line)
    numbers, class_names = _classes(where, first, classes)
    labels = np.array([numbers[label] for label in table.labels], dtype=np.int64)
    return ImageSet(paths, labels, class_names, names)


def _classes(
    where: str, first: Mapping[str, Line], known: tuple[str, ...]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class of each label, and the names of the classes."""
    if _are_numbers(where, first):
        numbers = {label: _number(where, line, label) for label, line in first.items()}
        return numbers, _numbered(where, max(numbers.values()), known)
    class_names = known or tuple(sorted(first))
    return _positions(where, first, class_names), class_names


def _are_numbers(where: str, first: Mapping[str, Line]) -> bool:
    """Whether the labels count classes; False if they name them."""
    example: dict[bool, str] = {}
    for label, line in first.items():
        if label.lower() in _MISSING:
            raise DataError(
                f"{where} {line} has no label; give it one, or leave the labels of all lines out"
            )
        example.setdefault(_NUMBER.fullmatch(label) is not None, label)
    if len(example) == 2:
        number, name = example[True], example[False]
        raise DataError(
            f"{where} {first[name]} has the label {shown(name)}, but line {first[number].number} has the label "
            f"{shown(number)[1:-1]}; number all classes, or name all of them"
        )
    return True in example


def _number(where: str, line: Line, text: str) -> int:
    match = _NUMBER.fullmatch(text)
    assert match is not None  # _are_numbers has looked
    # Python refuses numbers of more than 4300 digits; what is too large stays too large.
    number = int(match["whole"].lstrip("0")[:20] or "0")
    if (match["fraction"] or "").strip("0") or (match["sign"] == "-" and number):
        raise DataError(
            f"{where} {line} has the label {shown(text)[1:-1]}, expected a whole number from 0, or the name of a "
            "class; leave lines out whose class is not known"
        )
    return number


def _numbered(where: str, largest: int, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes that are known by their number."""
    if classes and classes != tuple(map(str, range(len(classes)))):
        raise DataError(
            f"{where} holds the label {largest}, but the training set has classes by name "
            f"({some_of(classes)}); name the classes in both lists"
        )
    if classes and largest >= len(classes):
        raise DataError(
            f"{where} holds label {largest}, but the training set has labels "
            f"0..{len(classes) - 1}; give both lists the same classes"
        )
    check_classes(where, largest)
    return classes or tuple(str(label) for label in range(largest + 1))


def _positions(where: str, first: Mapping[str, Line], classes: tuple[str, ...]) -> dict[str, int]:
    """Numbers of classes that are known by their name."""
    position = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in first if name not in position]:
        raise DataError(
            f"{where} {first[unknown[0]]} has a class that the training set lacks ({some_of(unknown)}; its classes: "
            f"{some_of(classes)}); give both lists the same classes"
        )
    return position


def _text(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{key} {located(file)} cannot be read ({error.strerror}); give a file of paths"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{key} {printable(file)} is not UTF-8 text (line {line}); save it as UTF-8, with lines 'path label' or 'path,label'"
        ) from error


def _check_files(where: str, table: Table, paths: Sequence[Path], root: Path) -> None:
    missing = [row for row, path in enumerate(paths) if not _is_file(path)]
    if not missing:
        return
    first = table.lines[missing[0]]
    raise DataError(
        f"{where} names {len(missing)} files that are missing (line {first.number}: "
        f"{', '.join(printable(paths[row]) for row in missing[:3])}{', ...' if len(missing) > 3 else ''}); "
        f"{_why_missing(table, root, missing)}"
    )


def _why_missing(table: Table, root: Path, missing: Sequence[int]) -> str:
    labeled = 0 if table.labels else sum(map(ends_with_label, table.paths))
    if labeled:
        return f"{labeled} of its {len(table.paths)} lines end with a label: all must, or none"
    hint = f"check data.root {located(root)}, where they start"
    if len(missing) == len(table.paths):
        return f"{hint}, and that a line is 'path', 'path label' or 'path,label'"
    if list(missing) == [0] and not Path(table.paths[0]).suffix:
        return f"{hint}; if line {table.lines[0].number} names the columns, call them 'path' and 'label'"
    return hint


def _is_file(path: Path) -> bool:
    # os.path: unlike Path's, it is False for names that are too long and where it must not look.
    return os.path.isfile(path)  # noqa: PTH113
