"""What is left of the images that a run was trained on, for those who judge it.

Shapes: N images, C classes.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.run_images import (
    GONE,
    Record,
    as_recorded,
    came_names,
    check_gone,
    check_unchanged,
    gone_names,
    is_cut,
    read_record,
    told,
)
from sslgh.data.sources import load_images, training_set
from sslgh.recipe import load_recipe
from sslgh.recipe.data import Data
from sslgh.recipe.printable import printable

RECIPE = "recipe.yaml"
# The settings that decide which training images there are.
CHOICE = ("source", "root", "list", "long_tail", "subset", "test_per_class", "split_seed")
FOLLOWS = "what is judged on the images of the run goes without them"


class Remaining(NamedTuple):
    """The images of a run, as an evaluation finds them.

    Attributes:
        images: Those that are still there, in the order of the run.
        class_counts: Of all that the run had, shape (C,), by the classes of ``images``.
        said: Sentences on what has come and gone.
    """

    images: ImageSet
    class_counts: NDArray[np.int64]
    said: list[str]


def remaining_images(directory: Path | None, data: Data, whole: ImageSet) -> Remaining:
    """The images of pretraining, labeled and numbered as the present training split has them.

    They are those that the run in ``directory`` recorded, whatever the source would be cut to by now;
    without a record, or when the data ask for other images than the run had, they are `training_set`.

    Args:
        directory: Of the run; None: there is none yet.
        data: Which images are asked for.
        whole: Their present training split, with labels.

    Raises:
        DataError: If the source cannot be used; if images in memory have changed or more than half of
            the files are gone since the run began; if the record is damaged.
        RecipeError: If the recipe of the run cannot be read.
    """
    record = _record_of(directory, data)
    if record is None or not record.names:
        images = training_set(data) if is_cut(data) else whole
        if record is not None:
            check_unchanged(record, images, data)
        return Remaining(images, images.class_counts, [])
    positions = _positions(record, whole)
    lost = np.flatnonzero(positions == GONE)
    gone = [record.names[i] for i in lost]
    check_gone(gone, record, data)
    images = whole.subset(positions[positions != GONE])
    classes = record.classes
    counts = images.class_counts + _counts([classes[i] for i in lost], whole.class_names)
    came = came_names(record, whole, data)
    return Remaining(images, counts, told(gone, came, len(positions), (FOLLOWS, FOLLOWS)))


def trained_images(directory: Path, data: Data) -> Remaining:
    """The images of supervised training, labeled and numbered as the run had them.

    The classes and their counts are the record's whatever the data ask for: the run's classifier has its
    rows in that order. Images in memory, and runs without a record, have those of `training_set`.

    Args:
        directory: Of the run.
        data: Which images are asked for.

    Raises:
        DataError: As `remaining_images`; if the label of an image has changed; if there is a class that
            the run did not know.
        RecipeError: If the recipe of the run cannot be read.
    """
    record = _record_of(directory, data)
    had = record or read_record(directory)
    if had is None or had.labels is None:  # images in memory are recorded by their hash alone
        images = training_set(data)
        if record is not None and not record.names:
            check_unchanged(record, images, data)
        return Remaining(images, images.class_counts, [])
    counts = np.bincount(had.labels, minlength=len(had.class_names)).astype(np.int64)
    if record is None:
        other = renumbered(training_set(data), had.class_names, of="training images")
        return Remaining(other, counts, [])
    present = load_images(data, "train")
    assert present is not None  # every source has a training split
    images = as_recorded(record, present, data)
    gone, came = gone_names(record, present), came_names(record, present, data)
    lost = set(gone)
    here = images.subset([i for i, name in enumerate(images.names) if name not in lost])
    return Remaining(here, counts, told(gone, came, len(images), (FOLLOWS, FOLLOWS)))


def renumbered(images: ImageSet, class_names: Sequence[str], *, of: str) -> ImageSet:
    """The same images, their classes numbered by another list of names.

    Args:
        images: N images.
        class_names: C names; the set may lack images of some.
        of: What the images are, for the message.

    Raises:
        DataError: If there is an image without label, or of a class that is not in the list.

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
    strange = images.labels[labels[images.labels] < 0]
    if len(strange):
        raise DataError(
            f"class '{printable(images.class_names[strange[0]])}' of the {of} is none of the "
            f"{len(class_names)} classes that the run was trained on; take its images out, or train "
            "anew in another run_dir"
        )
    return ImageSet(images.images, labels[images.labels], tuple(class_names), images.names)


def _record_of(directory: Path | None, data: Data) -> Record | None:
    """The record of the run in ``directory``, if it was asked for the images of ``data``."""
    if directory is None or not (directory / RECIPE).is_file():
        return None
    before = load_recipe(directory / RECIPE).data
    if any(getattr(before, key) != getattr(data, key) for key in CHOICE):
        return None
    return read_record(directory)


def _positions(record: Record, whole: ImageSet) -> NDArray[np.int64]:
    """Where the recorded images are in the training split, shape (N,); `GONE` for those that are not.

    A list may name a file several times, under several classes: those of the same class find each other
    first, in their order, then those of the same name.
    """
    assert whole.labels is not None
    found = [whole.class_names[label] for label in whole.labels.tolist()]
    places: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(whole.names):
        places[name].append(position)
    positions = np.full(len(record.names), GONE, dtype=np.int64)
    classes = record.classes
    for any_class in (False, True):
        for i in np.flatnonzero(positions == GONE).tolist():
            free = places.get(record.names[i], [])
            fitting = [place for place in free if any_class or found[place] == classes[i]]
            if fitting:
                positions[i] = fitting[0]
                free.remove(fitting[0])
    return positions


def _counts(classes: Sequence[str | None], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Images of each class, shape (C,); those of classes that are in no list are not counted."""
    number = {name: label for label, name in enumerate(class_names)}
    known = [number[name] for name in classes if name in number]
    return np.bincount(np.array(known, dtype=np.int64), minlength=len(number)).astype(np.int64)
