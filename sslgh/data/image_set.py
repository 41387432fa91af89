"""A set of images with optional labels, and those of its images that cannot be read.

Training shows others instead, and a report in the run directory names them.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslgh.data.batch_sampler import SUBSTITUTE, SampleKey, rng_for
from sslgh.data.decoding import BROKEN, hash_files, opened_image, reason, upright_rgb
from sslgh.recipe.errors import printable

# More than any published data set has; a number of another meaning (a date, an identity) among the labels
# would otherwise become as many classes, and take the memory for them.
MAX_CLASSES = 1_000_000
# Replacements that are drawn for an image.
TRIES = 100
# Value of ``broken`` for an image that can be read.
NONE_BROKEN = -1
# No epoch shows an image that often: the views of replacements lie beyond all repeats.
FIRST_REPLACEMENT = 2**30
QUARANTINE = "quarantine.json"
# Value of a file in the report that has been repaired.
READS_NOW = "was broken, reads now"


class DataError(ValueError):
    """The user's data cannot be used; the message is one sentence: where, what, and the remedy."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again with its whole traceback as the message; the
        # sentence that was meant for the user follows the last line that begins with the name
        # of this class. A file may be called "DataError: .jpg", but names cannot begin a line.
        if message.startswith("Caught DataError in "):
            message = re.split(r"^(?:[\w.]+\.)?DataError: ", message, flags=re.MULTILINE)[-1]
        super().__init__(message.strip())


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with optional labels; the images stay in files or are held as one array.

    Attributes:
        images: uint8 (N, H, W, 3) RGB, or N paths.
        labels: int64 (N,), or None.
        class_names: C names; empty without labels.
        names: N names for reports: file names relative to the root, or positions in the source.

    Examples:
        >>> pixels = np.zeros((3, 2, 2, 3), dtype=np.uint8)
        >>> pets = ImageSet(pixels, np.array([1, 0, 1]), ("cat", "dog"), ("0", "1", "2"))
        >>> pets.class_counts
        array([1, 2])
        >>> pets.subset([2, 0]).names
        ('2', '0')
    """

    images: NDArray[np.uint8] | tuple[Path, ...]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.images):
            raise ValueError(f"{len(self.images)} images need as many names, got {len(self.names)}")
        if (self.labels is None) != (not self.class_names):
            raise ValueError("labels and class_names go together: give both or neither")
        if (labels := self.labels) is None:
            return
        if labels.shape != (len(self),):
            raise ValueError(f"labels must have the shape ({len(self)},), got {labels.shape}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(
                f"labels must lie in 0..{len(self.class_names) - 1}, got {labels.min()}..{labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are held as one array."""
        return isinstance(self.images, np.ndarray)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Images of each class, shape (C,); ValueError without labels."""
        if self.labels is None:
            raise ValueError("class counts need labels, and this set of images has none")
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def image(self, i: int) -> Image.Image:
        """Image ``i``, upright and in RGB; a DataError names a file that is missing or broken."""
        if isinstance(self.images, np.ndarray):
            return Image.fromarray(self.images[i])
        return read_image(self.images[i])

    def subset(self, positions: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """The images at ``positions``, in that order, with the same classes."""
        order = np.asarray(positions, dtype=np.int64)
        images = self.images
        return ImageSet(
            images[order] if isinstance(images, np.ndarray) else tuple(images[i] for i in order),
            None if self.labels is None else self.labels[order],
            self.class_names,
            tuple(self.names[i] for i in order),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of pixels, or of names and bytes of files, and of labels (32 hex digits).

        Files are read whole, since a file of the same size may hold other pixels; a missing file changes it.
        They are read once: a set keeps its fingerprint.
        """
        digest = hashlib.blake2b(digest_size=16)
        if isinstance(self.images, np.ndarray):
            digest.update(repr(self.images.shape).encode())
            digest.update(np.ascontiguousarray(self.images).data)
        else:
            digest.update("\0".join([*self.names, ""]).encode("utf-8", "surrogateescape"))
            digest.update(hash_files(self.images))
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def read_image(path: Path) -> Image.Image:
    """One file as an upright RGB image: right, or refused.

    The first frame counts; see `sslgh.data.decoding.upright_rgb` for depths, inks and transparency.
    Memory stays below 24 bytes per pixel (8 to 12 for a photo) and pixels below
    `sslgh.data.decoding.MAX_PIXELS`: 3 GiB at the very most. JPEG has no checksum: flipped bits in its
    pixels may show as other colors and are not noticed.

    Raises:
        DataError: If the file is missing, not permitted, no regular file, broken or too large; it is
            named.
    """
    try:
        with opened_image(path) as image:
            return upright_rgb(image)
    except BROKEN as error:
        raise DataError(
            f"{printable(path)} cannot be read as an image ({reason(error)}); repair it or take it "
            "out of the data"
        ) from error


def check_classes(holder: str, largest: int) -> None:
    """Refuse labels that count something else than classes, before they are given memory.

    Args:
        holder: Origin of the labels, the first words of the message.
        largest: The largest label.

    Raises:
        DataError: If there are more than `MAX_CLASSES`.
    """
    if largest >= MAX_CLASSES:
        raise DataError(
            f"{holder} holds label {largest}, but labels count classes from 0 and end below "
            f"{MAX_CLASSES}; number the classes"
        )


class LoadedImage(NamedTuple):
    """The image that a sample is made from.

    Attributes:
        image: Upright and in RGB.
        key: Key of its views; the index is the image's own.
        broken: The index that was asked for, if it cannot be read; else -1.
    """

    image: Image.Image
    key: SampleKey
    broken: int


def load_or_replace(images: ImageSet, key: SampleKey, *, seed: int) -> LoadedImage:
    """The image of a key, or of 100 others the first that can be read; DataError if none can."""
    try:
        return LoadedImage(images.image(key.index), key, NONE_BROKEN)
    except DataError:
        return _replacement(images, key, seed)


def _replacement(images: ImageSet, key: SampleKey, seed: int) -> LoadedImage:
    """Another image, a function of the seed, the key and the broken files; its views are seen nowhere else."""
    generator = rng_for(seed, SUBSTITUTE, key.epoch, key.index, key.repeat)
    drawn = generator.integers(len(images), size=TRIES).tolist()
    # Two broken images may draw the same replacement: each shows a view of its own.
    repeat = int(generator.integers(FIRST_REPLACEMENT, 2 * FIRST_REPLACEMENT))
    reason = ""
    for position in drawn:
        try:
            image = images.image(position)
        except DataError as error:
            reason = str(error)
        else:
            return LoadedImage(image, SampleKey(key.epoch, repeat, position), key.index)
    raise DataError(
        f"{TRIES} images drawn at random cannot be read, so the images under data.root are gone or "
        f"broken; bring them back (the last: {reason})"
    )


def read_quarantine(directory: Path) -> dict[str, str]:
    """Names of the run's broken images, and why each cannot be read; DataError if the report is damaged."""
    path = directory / QUARANTINE
    return _read_report(path) if path.is_file() else {}


def _read_report(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(why) for name, why in json.loads(path.read_text())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is damaged; move it elsewhere, the images that are still broken are found again"
        ) from None


def quarantine_text(num_images: int, files: dict[str, str]) -> str:
    """Report on a training set of ``num_images``: JSON in ASCII, sorted by name."""
    report = {"images": num_images, "broken": len(still_broken(files)), "files": files}
    return json.dumps(report | {"files": dict(sorted(files.items()))}, indent=2) + "\n"


def still_broken(files: dict[str, str]) -> list[str]:
    """Sorted names of the files in a report that are not repaired."""
    return sorted(name for name, why in files.items() if why != READS_NOW)


def read_error(images: ImageSet, position: int) -> str:
    """Why an image cannot be read; ``READS_NOW`` if it can."""
    try:
        images.image(position)
    except DataError as error:
        return str(error)
    return READS_NOW
