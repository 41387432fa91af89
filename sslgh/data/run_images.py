"""The images that a run began with: the record in its directory is its data set.

A folder that changes afterwards shifts no position and no label: files that are new are not in the
record, and files that are missing are found broken when they are read. Shapes: N images, C classes.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslgh.data.folders import folder_of_record, warn_once
from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.run_record import IMAGES, Record, difference, image_fingerprint, read_record
from sslgh.data.sources import load_images, training_set
from sslgh.distributed import dist_info
from sslgh.recipe import Recipe
from sslgh.recipe.data import Data
from sslgh.recipe.errors import printable
from sslgh.recipe.run_recipe import RECIPE, absolute_path, load_run

log = logging.getLogger(__name__)

# Missing training images are replaced or left out, but not more than this share.
MAX_MISSING = 0.5
# The settings that decide which training images there are, and those that say where they are.
CHOICE = ("source", "long_tail", "subset", "test_per_class", "split_seed")
PLACES = ("root", "list")


def run_images(recipe: Recipe) -> ImageSet:
    """The training set of a run: the recorded one, or `training_set` if it has not begun.

    Raises:
        DataError: If the source cannot be used; if images in memory or the labels of a list have
            changed; if the record is damaged.
    """
    record = read_record(recipe.directory)
    # A directory whose run never took a step may be taken over by a recipe for other images.
    if record is None or other_images(recipe.directory, recipe.data) is not None:
        return training_set(recipe.data, labeled=recipe.asks_for_labels)
    return _recorded(record, recipe.data)


def other_images(directory: Path, data: Data) -> str | None:
    """Why ``data`` ask for other images than the run in ``directory`` began with; None if they do not.

    Files that have moved are known by their names and the content of a sample, a list by its images and labels,
    images in memory by their pixels.

    Raises:
        DataError: If the source cannot be used, or the record is damaged.
        RecipeError: If the recipe of the run cannot be read.
    """
    record = read_record(directory)
    if record is None or not (directory / RECIPE).is_file():
        return None
    before = load_run(directory).data
    for key in CHOICE:
        if (old := _setting(before, key)) != (new := _setting(data, key)):
            return f"data.{key} is {old} there and {new} here"
    moved = [key for key in PLACES if _setting(before, key) != _setting(data, key)]
    return _other_place(record, data, moved) if moved else None


def _setting(data: Data, key: str) -> Any:
    value = getattr(data, key)
    return absolute_path(value) if isinstance(value, Path) else value


def _other_place(record: Record, data: Data, moved: Sequence[str]) -> str | None:
    """Why the images at a new place are not those of a record; None if they are."""
    place = f"data.root {printable(data.root)}"
    if not record.names:
        same = training_set(data).fingerprint == record.fingerprint
        return None if same else f"{place} holds other images"
    if "list" in moved and image_fingerprint(training_set(data)) != record.fingerprint:
        return f"data.list {printable(str(data.list))} names other images, or other labels"
    paths = _paths(record.names, data)
    reason = difference(record.names, paths, record.content, most_missing=MAX_MISSING)
    if reason is not None:
        return f"{place} holds other images: {reason}"
    if "root" in moved:
        warn_once(f"the {len(record.names)} images that the run began with were found at {place}")
    return None


def probe_images(
    directory: Path | None, data: Data, full_train: ImageSet
) -> tuple[ImageSet, NDArray[np.int64]]:
    """The images of pretraining for a probe, labeled and numbered as the training split is now.

    The recorded images, whatever the source would be cut to by now; `training_set` without a record, or if
    the data ask for other images than the run had.

    Args:
        directory: Run directory; None: there is none yet.
        data: Which images are asked for.
        full_train: Their present training split, with labels.

    Returns:
        The images that are still there, and how many the run had of each class, shape (C,).

    Raises:
        DataError: If the source cannot be used; if images in memory have changed or more than half of
            the files are missing; if the record is damaged.
        RecipeError: If the recipe of the run cannot be read.
    """
    record = _record_of(directory, data)
    if record is None or not record.names:
        cut = data.long_tail is not None or data.subset is not None
        images = training_set(data) if cut else full_train
        if record is not None:
            _check_unchanged(record, images, data)
        return images, images.class_counts
    labels, paths = _labels_now(record, full_train), _paths(record.names, data)
    class_names, known = full_train.class_names, labels >= 0  # a class may be missing by now
    counts = np.bincount(labels[known], minlength=len(class_names)).astype(np.int64)
    rows = _existing(record.names, paths, data)
    rows = rows[known[rows]]
    names = tuple(record.names[i] for i in rows)
    return ImageSet(tuple(paths[i] for i in rows), labels[rows], class_names, names), counts


def trained_images(directory: Path, data: Data) -> tuple[ImageSet, NDArray[np.int64]]:
    """The images of supervised training, labeled and numbered as the run had them.

    The classes and their counts are the record's whatever the data ask for: the run's classifier has its
    rows in that order. Images in memory, and runs without a record, have those of `training_set`.

    Args:
        directory: Run directory.
        data: Which images are asked for.

    Returns:
        The images that are still there, and how many the run had of each class, shape (C,).

    Raises:
        DataError: For the reasons of `probe_images`; if the label of an image has changed; if there is a class that
            the run did not know.
        RecipeError: If the recipe of the run cannot be read.
    """
    asked = _record_of(directory, data)
    record = asked or read_record(directory)
    if record is None or record.labels is None:  # images in memory are recorded by their hash alone
        images = training_set(data) if asked is None else _recorded(asked, data)
        return images, images.class_counts
    counts = np.bincount(record.labels, minlength=len(record.class_names)).astype(np.int64)
    if asked is None:
        return renumbered(training_set(data), record.class_names, of="training images"), counts
    images = _recorded(record, data)
    return images.subset(_existing(images.names, _paths(record.names, data), data)), counts


def renumbered(images: ImageSet, class_names: Sequence[str], *, of: str) -> ImageSet:
    """The same images, their classes numbered by another list of names.

    Args:
        images: N images.
        class_names: C names; the set may lack images of some.
        of: Name of the images, for the message.

    Raises:
        DataError: If the images have no labels, or one is of a class that is not in the list.

    Examples:
        >>> pixels = np.zeros((2, 2, 2, 3), dtype=np.uint8)
        >>> pets = ImageSet(pixels, np.array([1, 2]), ("ant", "cat", "dog"), ("0", "1"))
        >>> renumbered(pets, ["cat", "dog"], of="test images").labels
        array([0, 1])
    """
    if images.labels is None:
        raise DataError(f"the {of} have no labels; give them as many classes as the run had")
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number.get(name, -1) for name in images.class_names], dtype=np.int64)
    unknown = images.labels[labels[images.labels] < 0]
    if len(unknown):
        raise DataError(
            f"class '{printable(images.class_names[unknown[0]])}' of the {of} is none of the "
            f"{len(class_names)} classes that the run was trained on; take its images out, or train "
            "again in another run_dir"
        )
    return ImageSet(images.images, labels[images.labels], tuple(class_names), images.names)


def _record_of(directory: Path | None, data: Data) -> Record | None:
    """The record of the run in ``directory``, if it was asked for the images of ``data``."""
    if directory is None or not (directory / RECIPE).is_file():
        return None
    if other_images(directory, data) is not None:
        return None
    record = read_record(directory)
    if record is not None and data.source == "folder" and data.test_root is not None:
        _check_test_images(record, data, data.test_root)
    return record


def _check_test_images(record: Record, data: Data, test_root: Path) -> None:
    """Refuse a test folder, given after the run began, that lies among the images of the run."""
    test = load_images(data, "test")
    assert test is not None  # there is a data.test_root
    assert not isinstance(test.images, np.ndarray)
    trained = set(map(absolute_path, _paths(record.names, data)))
    found = [path for path in test.images if absolute_path(path) in trained]
    if found:
        raise DataError(
            f"data.test_root {printable(test_root)} holds {len(found)} images that the run was trained on, the "
            f"first is {printable(found[0])}; give other images to test on"
        )


def _recorded(record: Record, data: Data) -> ImageSet:
    """The recorded images at their positions with their labels.

    Raises:
        DataError: If images in memory or the labels of a list have changed, or a name leads outside.
    """
    if not record.names:
        images = training_set(data)
        _check_unchanged(record, images, data)
        return images
    if data.source == "list":  # a folder's labels are part of its names
        _check_labels(record, data)
    labels = None if record.labels is None else np.array(record.labels, dtype=np.int64)
    paths = _paths(record.names, data)
    return ImageSet(paths, labels, tuple(record.class_names), tuple(record.names))


def _paths(names: list[str], data: Data) -> tuple[Path, ...]:
    for path in map(PurePath, names) if data.source == "folder" else ():
        # Nothing that was found by walking a folder is named so; a record from elsewhere may be.
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{IMAGES} names {printable(path)}, which lies outside data.root {printable(data.root)}; it was "
                "altered: choose another run_dir"
            )
    if data.source == "list":
        root = data.root
    else:
        root = folder_of_record(names, data.root, data.test_root)
    return tuple(root / name for name in names)


def check_files(images: ImageSet, root: Path) -> None:
    """Look for about a thousand files of a run that resumes.

    Raises:
        DataError: If more than half of them are missing.
    """
    if isinstance(images.images, np.ndarray):
        return
    sample = images.images[:: max(1, len(images) // 1000)]
    missing = [path for path in sample if not os.path.exists(path)]  # noqa: PTH110 - never raises
    if len(missing) > MAX_MISSING * len(sample):
        raise DataError(
            f"{len(missing)} of {len(sample)} images of the run that were looked for are missing from data.root "
            f"{printable(root)}, the first is {printable(missing[0])}; restore them, or choose another run_dir"
        )


def _check_unchanged(record: Record, images: ImageSet, data: Data) -> None:
    if not images.in_memory or images.fingerprint != record.fingerprint:
        raise DataError(
            f"the images of data.root {printable(data.root)} have changed since the run "
            "began; restore them or choose another run_dir"
        )


def _check_labels(record: Record, data: Data) -> None:
    split = load_images(data, "train")
    if record.labels is None or split is None or split.labels is None:
        return
    classes = (split.class_names[label] for label in split.labels.tolist())
    known, pairs = set(split.names), set(zip(split.names, classes, strict=True))
    for name, was in zip(record.names, record.classes, strict=True):
        if name in known and (name, was) not in pairs:
            raise DataError(
                f"{printable(name)} was of class {printable(str(was))} when the run began and is of another "
                "one now; restore the labels or choose another run_dir"
            )


def _labels_now(record: Record, full_train: ImageSet) -> NDArray[np.int64]:
    """Labels (N,) of the recorded images in the split's numbers; -1 for a class that it lacks.

    The split's own labels count. A list may name a file under several classes: classes that the record
    has too are matched first.
    """
    assert full_train.labels is not None
    free: defaultdict[str, list[str | None]] = defaultdict(list)
    for name, label in zip(full_train.names, full_train.labels.tolist(), strict=True):
        free[name].append(full_train.class_names[label])
    classes, unmatched = record.classes, []
    for i, name in enumerate(record.names):
        if classes[i] in free[name]:
            free[name].remove(classes[i])
        else:
            unmatched.append(i)
    for i in unmatched:
        if free[record.names[i]]:
            classes[i] = free[record.names[i]].pop(0)
    number: dict[str | None, int] = {c: label for label, c in enumerate(full_train.class_names)}
    return np.array([number.get(name, -1) for name in classes], dtype=np.int64)


def _existing(names: Sequence[str], paths: Sequence[Path], data: Data) -> NDArray[np.int64]:
    """Positions of the files that exist; a warning says how many do not.

    Raises:
        DataError: If more than half do not.
    """
    exists = np.array([os.path.exists(path) for path in paths])  # noqa: PTH110 - never raises
    missing = np.flatnonzero(~exists)
    if len(missing):
        text = (
            f"{len(missing)} of {len(names)} images of the run are missing from data.root "
            f"{printable(data.root)}, the first is {printable(names[missing[0]])}"
        )
        if len(missing) > MAX_MISSING * len(names):
            raise DataError(
                f"{text}; restore them, point data.root to where they are, or choose another run_dir"
            )
        if dist_info().rank == 0:
            log.warning("%s; its evaluation leaves them out", text)
    return np.flatnonzero(exists)
