"""What is measured of a photo while it is decoded for the backbone, so that none is decoded twice."""

from pathlib import Path

import numpy as np
from PIL import Image

from sslgh.explore.perceptual_hash import perceptual_hash
from sslgh.explore.picture_quality import picture_values


def photo_facts(image: Image.Image, path: Path) -> dict[str, np.generic]:
    """Values of one decoded RGB photo by name: its quality, its sides in pixels, its perceptual hash.

    Args:
        image: The photo as a viewer shows it.
        path: File of the photo, of which nothing is read: a loader passes it to all such functions.
    """
    width, height = image.size
    return {
        **{name: np.float32(value) for name, value in picture_values(image).items()},
        "width": np.int32(width),
        "height": np.int32(height),
        "hash": np.uint64(perceptual_hash(image)),
    }
