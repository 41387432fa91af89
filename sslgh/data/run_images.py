"""The list of a run's images, known by name: a folder that changes shifts no position."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from sslgh.data.folders import split_folders
from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.sources import load_images, training_set
from sslgh.distributed import dist_info
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
    record = read_record(recipe.directory)
    if record is None:
        return training_set(recipe.data), []
    if not record.names:
        images = training_set(recipe.data)
        check_unchanged(record, images, recipe.data)
        return images, []
    present = load_images(recipe.data, "train")
    assert present is not None  # every source has a training split
    images = as_recorded(record, present, recipe.data)
    gone, came = gone_names(record, present), came_names(record, present, recipe.data)
    said = told(gone, came, len(images), ("others are shown instead", "this run leaves them out"))
    return images, [*said, *_resized(record, images)]


def record_text(images: ImageSet) -> str:
    """What ``images.json`` holds: about 45 bytes an image, 55 MB for the 1.28 million of ImageNet.

    Args:
        images: The set that the run begins with.
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
    return json.dumps(content, separators=(",", ":")) + "\n"


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


def read_record(directory: Path) -> Record | None:
    """The record of the run in ``directory``; None where there is none.

    Raises:
        DataError: If it is damaged, or of another format.
    """
    path = directory / IMAGES
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


def check_unchanged(record: Record, images: ImageSet, data: Data) -> None:
    """Refuse images in memory that are not those of the record.

    Raises:
        DataError: If they are others.
    """
    if not images.in_memory or images.fingerprint() != record.fingerprint:
        raise DataError(
            f"the images of data.root {printable(data.root)} have changed since the run "
            "began; restore them or choose another run_dir"
        )


def as_recorded(record: Record, present: ImageSet, data: Data) -> ImageSet:
    """All the recorded images, with the recorded labels, as files of the present source.

    Raises:
        DataError: If more than half are gone, the label of one is another, or one lies outside a folder.
    """
    gone = gone_names(record, present)
    check_gone(gone, record, data)
    _check_inside(gone, data)
    _check_labels(record, present)
    root = data.root if data.source == "list" else split_folders(data.root, data.test_root)[0]
    return ImageSet(
        tuple(root / name for name in record.names),
        None if record.labels is None else np.array(record.labels, dtype=np.int64),
        tuple(record.class_names),
        tuple(record.names),
    )


def _check_inside(names: list[str], data: Data) -> None:
    """Nothing that was found by walking a folder is named so; a record from elsewhere may be."""
    for path in map(PurePath, names) if data.source == "folder" else ():
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{IMAGES} names {printable(path)}, which lies outside data.root {printable(data.root)}; it was "
                "altered: choose another run_dir"
            )


def gone_names(record: Record, present: ImageSet) -> list[str]:
    """The recorded images that are no longer there."""
    known = set(present.names)
    return [name for name in record.names if name not in known]


def came_names(record: Record, present: ImageSet, data: Data) -> list[str]:
    """The images that are not in the record, sorted; none where the source is cut."""
    # A cut leaves most files out: which of them are new is not known.
    if is_cut(data):
        return []
    return sorted(set(present.names).difference(record.names))


def is_cut(data: Data) -> bool:
    """Whether a run takes a part of the training split only."""
    return data.long_tail is not None or data.subset is not None


def check_gone(gone: Sequence[str], record: Record, data: Data) -> None:
    """Refuse a source that lacks most of the run's images.

    Raises:
        DataError: If more than half are gone.
    """
    if len(gone) > MOST_GONE * len(record.names):
        raise DataError(
            f"{len(gone)} of {len(record.names)} images of the run are gone from data.root "
            f"{printable(data.root)}, the first is {printable(gone[0])}; restore them, point data.root "
            "to where they are, or choose another run_dir"
        )


def told(
    gone: Sequence[str], came: Sequence[str], total: int, follows: tuple[str, str]
) -> list[str]:
    """Sentences on images that have gone or come, each ending in what follows from it."""
    sentences = []
    if gone:
        sentences.append(
            f"{len(gone)} of {total} images have gone since the run began, the first is "
            f"{printable(gone[0])}; {follows[0]}"
        )
    if came:
        sentences.append(
            f"{len(came)} image(s) came since the run began, the first is {printable(came[0])}; "
            f"{follows[1]}"
        )
    return sentences


def _check_labels(record: Record, present: ImageSet) -> None:
    # A stray image beside the class folders takes the labels off all; the record still has them.
    if record.labels is None or present.labels is None:
        return
    classes = (present.class_names[label] for label in present.labels.tolist())
    known, pairs = set(present.names), set(zip(present.names, classes, strict=True))
    for name, was in zip(record.names, record.classes, strict=True):
        if name in known and (name, was) not in pairs:
            raise DataError(
                f"{printable(name)} was of class {printable(str(was))} when the run began and is of another "
                "one now; restore the labels or choose another run_dir"
            )


def _resized(record: Record, images: ImageSet) -> list[str]:
    """A sentence on files that hold something else; process 0 looks, the others believe it."""
    if dist_info().rank != 0:
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
