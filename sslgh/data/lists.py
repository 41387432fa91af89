"""Lists of files, as ImageNet-LT, Places-LT and iNaturalist are published."""

import os
import re
from pathlib import Path

import numpy as np

from sslgh.data.image_set import DataError, ImageSet, check_classes
from sslgh.recipe.errors import printable

_LABELED = re.compile(r"(?P<path>.*\S)\s+(?P<label>\d+)")


def read_list(file: Path, root: Path, *, key: str, classes: tuple[str, ...] = ()) -> ImageSet:
    """The images of a list with one ``path [label]`` per line, in that order.

    A path may contain spaces: the last word is a label when every line ends with an integer. Labels
    may leave gaps; there are max + 1 classes, named by their number.

    Args:
        file: The list, UTF-8; blank lines are skipped.
        root: Folder the paths start from.
        key: The recipe's name for the list, for messages.
        classes: Classes that are already known (of the training list).

    Raises:
        DataError: If the list cannot be read, is empty, names missing files or unknown classes, or
            labels that are no classes.
    """
    lines = _lines(file, key)
    matches = [match for line in lines if (match := _LABELED.fullmatch(line))]
    labeled = len(matches) == len(lines)
    names = [match["path"] for match in matches] if labeled else lines
    paths = tuple(root / name for name in names)
    _check_files(file, paths, key=key, stray_labels=0 if labeled else len(matches))
    if not labeled:
        return ImageSet(paths, None, (), tuple(names))
    numbers = [_number(match["label"]) for match in matches]
    _check_labels(file, max(numbers), key=key, classes=classes)
    class_names = classes or tuple(str(label) for label in range(max(numbers) + 1))
    return ImageSet(paths, np.array(numbers, dtype=np.int64), class_names, tuple(names))


def _number(digits: str) -> int:
    # Python refuses numbers of more than 4300 digits; what is too large stays too large.
    return int(digits.lstrip("0")[:20] or "0")


def _check_labels(file: Path, largest: int, *, key: str, classes: tuple[str, ...]) -> None:
    if classes and largest >= len(classes):
        raise DataError(
            f"{key} {printable(file)} holds label {largest}, but the training set has labels "
            f"0..{len(classes) - 1}; give both lists the same classes"
        )
    check_classes(f"{key} {printable(file)}", largest)


def _lines(file: Path, key: str) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{key} {printable(file)} cannot be read ({error.strerror}); give a file of paths"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{key} {printable(file)} is not UTF-8 text; give a file of lines 'path label'"
        ) from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{key} {printable(file)} is empty; give a file of lines 'path label'")
    return lines


def _check_files(file: Path, paths: tuple[Path, ...], *, key: str, stray_labels: int) -> None:
    # os.path: unlike Path's, it is False for names that are too long and where it must not look.
    missing = [printable(path) for path in paths if not os.path.isfile(path)]  # noqa: PTH113
    if not missing:
        return
    hint = "check data.root"
    if stray_labels:
        hint = f"{stray_labels} of its {len(paths)} lines end with a label: all must, or none"
    raise DataError(
        f"{key} {printable(file)} names {len(missing)} files that are missing ({', '.join(missing[:3])}"
        f"{', ...' if len(missing) > 3 else ''}); {hint}"
    )
