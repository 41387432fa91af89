"""The list of a run's images, known by name: a folder that changes shifts no position."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslgh.data import DataError, ImageSet, load_images, training_set
from sslgh.data.folders import split_folders
from sslgh.distributed import world
from sslgh.engine.run_directory import write_text
from sslgh.recipe import Recipe
from sslgh.recipe.data import Data
from sslgh.recipe.printable import printable

IMAGES = "images.json"
FORMAT = 1
# Of more than this share gone, data.root is another folder than it was.
MOST_GONE = 0.5
GONE = -1


class Record(NamedTuple):
    """The training set that a run began with.

    Attributes:
        fingerprint: Of names, classes and labels for files, of the pixels and labels in memory.
        names: N names; empty for images in memory.
        class_names: C names; empty without labels.
        labels: N labels, or None.
        sizes: N sizes (bytes), -1 for a file that was not there; empty for images in memory.
    """

    fingerprint: str
    names: list[str]
    class_names: list[str]
    labels: list[int] | None
    sizes: list[int]

    @property
    def classes(self) -> list[str | None]:
        """The class name of each image, shape (N,)."""
        if self.labels is None:
            return [None] * len(self.names)
        return [self.class_names[label] for label in self.labels]


def run_images(recipe: Recipe) -> tuple[ImageSet, list[str]]:
    """The training set of a run, as it was when the run began.

    Without a record in the run directory it is `training_set`. With one, images of files stand at the
    recorded positions with the recorded labels, whatever the source holds by now: files that have gone
    keep their place, to be found broken when they are read, and files that have come are left out.

    Args:
        recipe: Its data and its directory.

    Returns:
        The set, and sentences on what has changed.

    Raises:
        DataError: If the source cannot be used; if images in memory have changed, the label of a file
            has, or more than half of the files are gone; if the record is damaged.
    """
    record = _read(recipe.directory / IMAGES)
    if record is None:
        return training_set(recipe.data), []
    if not record.names:
        images = training_set(recipe.data)
        if not images.in_memory or images.fingerprint() != record.fingerprint:
            raise DataError(
                f"the images of data.root {printable(recipe.data.root)} have changed since the run "
                "began; restore them or choose another run_dir"
            )
        return images, []
    present = load_images(recipe.data, "train")
    assert present is not None  # every source has a training split
    return _as_recorded(record, present, recipe.data)


def record_images(directory: Path, images: ImageSet) -> None:
    """Write ``images.json``: about 45 bytes an image, 55 MB for the 1.28 million of ImageNet.

    Args:
        directory: The run directory.
        images: The set that the run begins with.

    Raises:
        OSError: If it cannot be written.
    """
    labels = None if images.labels is None else images.labels.tolist()
    if isinstance(images.images, np.ndarray):
        record = Record(images.fingerprint(), [], [], None, [])
    else:
        record = Record(
            image_fingerprint(images),
            list(images.names),
            list(images.class_names),
            labels,
            [_size(path) for path in images.images],
        )
    content = {"format": FORMAT, **record._asdict()}
    write_text(directory / IMAGES, json.dumps(content, separators=(",", ":")) + "\n")


def image_fingerprint(images: ImageSet) -> str:
    """Hash of names, class names and labels, not of what the files hold (32 hex digits)."""
    labels = None if images.labels is None else images.labels.tolist()
    return _hash(images.names, images.class_names, labels)


def _hash(names: Iterable[str], class_names: Iterable[str], labels: list[int] | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for texts in (names, class_names):
        # No name holds the separator, and not all are Unicode: Linux lets them be any bytes.
        digest.update("\0".join([*texts, ""]).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    if labels is not None:
        digest.update(np.asarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = content.pop("format")
        record = Record(**content) if written == FORMAT else None
        if record is not None and record.names:
            _check(record)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise DataError(
            f"{path} is damaged, so it is not known which images the run began with; restore it or "
            "choose another run_dir"
        ) from None
    if record is None:
        raise DataError(
            f"{path} has format {written!r}, this sslgh reads {FORMAT}; choose another run_dir, or "
            "the sslgh that wrote it"
        )
    return record


def _check(record: Record) -> None:
    if _hash(record.names, record.class_names, record.labels) != record.fingerprint:
        raise ValueError("the list does not fit its fingerprint")
    if len(record.sizes) != len(record.names):
        raise ValueError("each image needs a size")


def _as_recorded(record: Record, present: ImageSet, data: Data) -> tuple[ImageSet, list[str]]:
    """The recorded images as files of the present source, and what has changed."""
    known = set(present.names)
    gone = [name for name in record.names if name not in known]
    if len(gone) > MOST_GONE * len(record.names):
        raise DataError(
            f"{len(gone)} of {len(record.names)} images of the run are gone from data.root "
            f"{printable(data.root)}, the first is {printable(gone[0])}; restore them, point data.root "
            "to where they are, or choose another run_dir"
        )
    _check_labels(record, present, known)
    root = data.root if data.source == "list" else split_folders(data.root, data.test_root)[0]
    images = ImageSet(
        tuple(root / name for name in record.names),
        None if record.labels is None else np.array(record.labels, dtype=np.int64),
        tuple(record.class_names),
        tuple(record.names),
    )
    # A cut leaves most files out: which of them are new is not known.
    whole = data.long_tail is None and data.subset is None
    came = sorted(known.difference(record.names)) if whole else []
    return images, [*_told(gone, came, len(images)), *_resized(record, images)]


def _told(gone: list[str], came: list[str], total: int) -> list[str]:
    sentences = []
    if gone:
        sentences.append(
            f"{len(gone)} of {total} images have gone since the run began, the first is "
            f"{printable(gone[0])}; others are shown instead"
        )
    if came:
        sentences.append(
            f"{len(came)} image(s) came since the run began, the first is {printable(came[0])}; "
            "this run leaves them out"
        )
    return sentences


def _check_labels(record: Record, present: ImageSet, known: set[str]) -> None:
    # A stray image beside the class folders takes the labels off all; the record still has them.
    if record.labels is None or present.labels is None:
        return
    classes = (present.class_names[label] for label in present.labels.tolist())
    pairs = set(zip(present.names, classes, strict=True))
    for name, was in zip(record.names, record.classes, strict=True):
        if name in known and (name, was) not in pairs:
            raise DataError(
                f"{printable(name)} was of class {printable(str(was))} when the run began and is of another "
                "one now; restore the labels or choose another run_dir"
            )


def _resized(record: Record, images: ImageSet) -> list[str]:
    """A sentence on files that hold something else; process 0 looks, the others believe it."""
    if world().rank != 0:
        return []
    assert not isinstance(images.images, np.ndarray)
    sizes = zip(images.names, record.sizes, map(_size, images.images), strict=True)
    other = [name for name, was, size in sizes if size not in (was, GONE)]
    if not other:
        return []
    sentence = (
        f"{len(other)} image(s) have another size in bytes than when the run began, the first is "
        f"{printable(other[0])}; the run goes on with them as they are"
    )
    return [sentence]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return GONE
