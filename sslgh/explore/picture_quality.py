"""What a picture itself shows: too dark, too bright, blurred, tiny, of an odd shape, nearly empty.

Scores and thresholds are those of CleanVision 0.3.7 (Cleanlab, Apache-2.0), as its defaults have them. Written
out because its package needs pandas and takes percentiles over every pixel of a photo: here they are those of a
reduced copy, which a phone's 12 megapixels do not slow down. Two are choices of ours: the size of tiny pictures,
and the sharpness. CleanVision's counts the outermost pixels, which Pillow's filter leaves as they are, as edges, so
that a blurred picture with a bright border passes; without them, its threshold of 0.29 at a border of middle gray
is 0.1.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, ImageStat

Array = NDArray[np.float32]

# Longer side in pixels of the reduced copies: of brightness, and CleanVision's of blur.
BRIGHTNESS_SIDE, BLUR_SIDE = 256, 64
# Shorter side in pixels under which a backbone of 224 pixels mostly sees interpolation.
TINY = 64


class PictureRule(NamedTuple):
    """A picture has a fault where a value falls below a threshold.

    Attributes:
        value: Name of the value in `picture_values`.
        threshold: Least value of a picture without the fault.
        words: What is wrong, for people.
    """

    value: str
    threshold: float
    words: str


RULES = {
    "dark": PictureRule("brightest", 0.32, "too dark"),
    "bright": PictureRule("darkness", 0.05, "too bright"),
    "blurred": PictureRule("sharpness", 0.1, "blurred"),
    "tiny": PictureRule("side", TINY, f"under {TINY} pixels on one side"),
    "odd shape": PictureRule("shape", 0.35, "much longer than wide"),
    "empty": PictureRule("information", 0.3, "hardly anything in it"),
}


def picture_values(image: Image.Image) -> dict[str, float]:
    """Values of one RGB picture that `RULES` compare; each is low where the picture has a fault.

    Examples:
        >>> values = picture_values(Image.new("RGB", (300, 100)))
        >>> values["brightest"], values["side"], round(values["shape"], 2)
        (0.0, 100.0, 0.33)
    """
    width, height = image.size
    small = _reduced(image, BRIGHTNESS_SIDE)
    low, high = np.percentile(_brightness(small), [5, 99])
    return {
        "brightest": float(high),
        "darkness": float(1 - low),
        "sharpness": _sharpness(_reduced(small, BLUR_SIDE).convert("L")),
        "side": float(min(width, height)),
        "shape": min(width / height, height / width),
        "information": min(1.0, 0.1 * small.entropy()),
    }


def picture_faults(values: dict[str, Array]) -> dict[str, NDArray[np.bool_]]:
    """Which pictures have which fault: masks (N,) by name, from values (N,) by name.

    Values of a picture that could not be read are nan, which is no fault.

    Examples:
        >>> {name: bool(mask[0]) for name, mask in picture_faults({"side": np.float32([20])}).items()}
        {'tiny': True}
    """
    return {
        name: values[rule.value] < rule.threshold
        for name, rule in RULES.items()
        if rule.value in values
    }


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """Picture with the longer side of at most ``side`` pixels."""
    longest = max(image.size)
    if longest <= side:
        return image
    width, height = (max(1, length * side // longest) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _brightness(image: Image.Image) -> Array:
    """Perceived brightness of each pixel, 0 to 1, shape (H, W)."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    weights = np.array([0.241, 0.691, 0.068], dtype=np.float32)
    brightness: Array = np.sqrt(pixels * pixels @ weights)
    return brightness


def _sharpness(gray: Image.Image) -> float:
    """Strength of edges, 0 to 1; a picture of few gray levels is sharp whatever its edges."""
    found = gray.filter(ImageFilter.FIND_EDGES)
    if min(found.size) > 2:
        found = ImageOps.crop(found, 1)
    edges = float(np.sqrt(ImageStat.Stat(found).var[0]))
    spread = float(1 - np.exp(-0.01 * np.std(gray.histogram())))
    return min(1.0, float(1 - np.exp(-0.01 * edges)) + (spread if spread > 0.18 else 0.0))
