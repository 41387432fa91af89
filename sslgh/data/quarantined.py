"""The images that a run found broken, as its directory keeps them."""

import json
from pathlib import Path

from sslgh.data.image_set import DataError, ImageSet

QUARANTINE = "quarantine.json"
# What stands in the place of a reason once the file has been repaired.
READS_NOW = "was broken, reads now"


def quarantined(directory: Path) -> dict[str, str]:
    """Names of the images that the run in ``directory`` found broken, each with its reason.

    Raises:
        DataError: If the report is damaged.
    """
    path = directory / QUARANTINE
    if not path.is_file():
        return {}
    try:
        return {str(name): str(why) for name, why in json.loads(path.read_text())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is damaged; delete it, the images that are still broken are found again"
        ) from None


def quarantine_text(num_images: int, files: dict[str, str]) -> str:
    """The report of a training set of ``num_images``: JSON in ASCII, files by name."""
    report = {"images": num_images, "broken": len(unreadable(files)), "files": files}
    return json.dumps(report | {"files": dict(sorted(files.items()))}, indent=2) + "\n"


def unreadable(files: dict[str, str]) -> list[str]:
    """Names of those that are broken still, sorted."""
    return sorted(name for name, why in files.items() if why != READS_NOW)


def reason(images: ImageSet, position: int) -> str:
    """Why an image cannot be read; ``READS_NOW`` if it can."""
    try:
        images.image(position)
    except DataError as error:
        return str(error)
    return READS_NOW
