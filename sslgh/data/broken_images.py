"""Images that cannot be read: what training shows instead, and the report in the run directory."""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sslgh.data.batch_sampler import SUBSTITUTE, SampleKey, rng_for
from sslgh.data.image_set import DataError, ImageSet

TRIES = 100
# Value of ``broken`` for an image that can be read.
NONE_BROKEN = -1
# No epoch shows an image that often: the views of replacements lie beyond all repeats.
FIRST_REPLACEMENT = 2**30
QUARANTINE = "quarantine.json"
# Value of a file in the report that has been repaired.
READS_NOW = "was broken, reads now"


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
            f"{path} is damaged; delete it, the images that are still broken are found again"
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
