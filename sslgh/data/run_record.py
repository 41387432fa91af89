"""The record of the images that a run began with: ``images.json``.

A sample of the files is known by its content, at another place too. Shapes: N images, C classes.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sslgh.data.decoding import HASH_BYTES, hash_files
from sslgh.data.image_set import DataError, ImageSet
from sslgh.recipe.errors import printable

IMAGES = "images.json"
FORMAT = 3
# Files whose content is recorded, at least, or all.
SAMPLE = 256
MISSING = bytes(HASH_BYTES).hex()
T = TypeVar("T")


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
        record = Record(images.fingerprint, [], list(images.class_names), None)
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


def sample_hashes(paths: Sequence[Path]) -> list[str]:
    """Hashes of the bytes of a few hundred files, evenly spread; `MISSING` for what is no file."""
    found = hash_files(tuple(_sample(paths)))
    return [found[i : i + HASH_BYTES].hex() for i in range(0, len(found), HASH_BYTES)]


def difference(
    names: Sequence[str], paths: Sequence[Path], hashes: Sequence[str], *, most_missing: float
) -> str | None:
    """Why files are not those of a run, in words; None if they are.

    Args:
        names: Names of the run's images.
        paths: Where they are looked for.
        hashes: Their `sample_hashes` when the run began; empty for a run that recorded none.
        most_missing: Largest share of the sample that may be missing.
    """
    found, sample = sample_hashes(paths), list(_sample(names))
    missing = [name for name, now in zip(sample, found, strict=True) if now == MISSING]
    if len(missing) > most_missing * len(sample):
        return (
            f"{len(missing)} of {len(sample)} images of the run that were looked for are missing there, the first is "
            f"{printable(missing[0])}"
        )
    known = zip(sample, found, hashes, strict=True) if hashes else ()
    for name, now, before in known:
        if now != before and MISSING not in (now, before):
            return f"{printable(name)} is another file there"
    return None


def _sample(items: Sequence[T]) -> Sequence[T]:
    return items[:: max(1, len(items) // SAMPLE)]
