"""The record of the images that a run began with: ``images.json``. Shapes: N images, C classes."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslgh.data.file_sample import sample_hashes
from sslgh.data.image_set import DataError, ImageSet

IMAGES = "images.json"
FORMAT = 3


class Record(NamedTuple):
    """The training set that a run began with.

    Attributes:
        fingerprint: Hash of names, classes and labels for files, of pixels and labels in memory.
        names: N names; empty for images in memory.
        class_names: C names; empty without labels.
        labels: N labels; None without labels, and for images in memory.
        content: Hashes of a sample of the files; empty for images in memory and runs that recorded none.
    """

    fingerprint: str
    names: list[str]
    class_names: list[str]
    labels: list[int] | None
    content: list[str] = []  # noqa: RUF012 - never changed

    @property
    def classes(self) -> list[str | None]:
        """The class name of each image, shape (N,)."""
        if self.labels is None:
            return [None] * len(self.names)
        return [self.class_names[label] for label in self.labels]


def record_text(images: ImageSet) -> str:
    """What ``images.json`` holds: about 40 bytes per image, 50 MB for the 1.28 million of ImageNet."""
    if isinstance(images.images, np.ndarray):
        record = Record(images.fingerprint(), [], list(images.class_names), None)
    else:
        labels = None if images.labels is None else images.labels.tolist()
        names = list(images.names), list(images.class_names)
        record = Record(image_fingerprint(images), *names, labels, sample_hashes(images.images))
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
    """The record of the run in ``directory``; None if there is none.

    Raises:
        DataError: If it is damaged, or of another format.
    """
    path = directory / IMAGES
    return _read_record(path) if path.is_file() else None


def _read_record(path: Path) -> Record:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = content.pop("format")
        content.pop("sizes", None)  # of the files, in format 1
        record = Record(**content) if written in {1, 2, FORMAT} else None
        if record is not None and record.names:
            _check_fingerprint(record)
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


def _check_fingerprint(record: Record) -> None:
    if _hash(record.names, record.class_names, record.labels) != record.fingerprint:
        raise ValueError("the list does not fit its fingerprint")
