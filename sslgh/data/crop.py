"""Crops of single images, on uint8 pixels and antialiased."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslgh.preprocessing import FILTERS, pixels

ATTEMPTS = 10
# Uniform numbers that one random resized crop uses up.
CROP_PARAMS = 2 * ATTEMPTS + 2

Box = tuple[int, int, int, int]
Range = tuple[float, float]


def random_box(
    width: int, height: int, random_params: Sequence[float], *, scale: Range, ratio: Range
) -> Box:
    """Box of a random resized crop: left, top, right, bottom.

    The distribution is that of torchvision's ``RandomResizedCrop.get_params``: ten attempts at an
    area (``scale``: share of the image) and a log-uniform aspect (``ratio``: width over height), then the
    central crop of the nearest aspect. ``random_params``: ``CROP_PARAMS`` uniform numbers in [0, 1).

    Examples:
        >>> random_box(8, 4, [0.5] * CROP_PARAMS, scale=(1, 1), ratio=(2, 2))
        (0, 0, 8, 4)
        >>> random_box(8, 4, [0.5] * CROP_PARAMS, scale=(1, 1), ratio=(1, 1))  # the fallback
        (2, 0, 6, 4)
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * random_params[2 * attempt])
        aspect = math.exp(low + (high - low) * random_params[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(random_params[-2] * (width - w + 1))
            top = int(random_params[-1] * (height - h + 1))
            return left, top, left + w, top + h
    return _central_box(width, height, ratio)


def _central_box(width: int, height: int, ratio: Range) -> Box:
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(image: Image.Image, box: Box, size: int, interpolation: str) -> NDArray[np.uint8]:
    """The box as ``size`` x ``size`` pixels, uint8 (3, S, S).

    Cropped first: ``resize(box=...)`` lets pixels outside the box bleed in at its border.
    """
    return pixels(image.crop(box).resize((size, size), FILTERS[interpolation]))
