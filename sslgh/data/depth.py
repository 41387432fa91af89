"""Pixels of more than 8 bits, signed and floating-point ones as 8 bits, the way a viewer shows them.

A file of 16 bits does not say how many of them are in use: cameras, scanners and microscopes store 8, 10, 12
or 14 in it. The fixed rule of photo viewers (the upper 8 bits) shows 12 bits nearly black; the rule of
scientific ones (the darkest pixel black, the lightest white) makes images of one data set differ in
brightness that are alike, and differ from copies of 8 bits. So the depth is recognized: the least of the usual
ones that holds all values, which shows an image as its copy of 8 bits would. Where that would leave less
than a quarter of the range between the darkest pixel and the lightest (thermal images, depth maps), and for
negative values and floating point above 255, it is scaled by its own range.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Whites of the usual depths, 8 to 16 bits, and of floating-point images: shares, and values of 8 bits.
WHITES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
FLOAT_WHITES = (1, 255)
LEAST_CONTRAST = 1 / 4


class Range(NamedTuple):
    """Values that become black and white.

    Attributes:
        black: Value that becomes 0.
        white: Value that becomes 255.
        words: How the image was read, for `sslgh scan`.
    """

    black: float
    white: float
    words: str

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Values (...) as 8 bits; those outside the range are clipped, NaN is black.

        Whole numbers of a recognized depth keep their upper 8 bits, which are the same whether 8 bits were
        stored as ``v * 2^(b - 8)`` or as ``round(v * (2^b - 1) / 255)``.

        Examples:
            >>> Range(0, 4095, "").apply(np.array([0, 15, 16, 2048, 4095], dtype=np.uint16))
            array([  0,   0,   1, 128, 255], dtype=uint8)
            >>> Range(-1, 1, "").apply(np.array([-1.0, 0.0, 1.0, np.nan, np.inf]))
            array([  0, 128, 255,   0, 255], dtype=uint8)
        """
        bits = int(self.white).bit_length()
        if values.dtype.kind in "iu" and self.black == 0 and self.white in WHITES:
            return (values >> (bits - 8)).astype(np.uint8)
        scaled = values.astype(np.float64)
        scaled -= self.black
        scaled *= 255 / (self.white - self.black or 1)
        np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
        np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled)
        return scaled.astype(np.uint8)


def shown_range(low: float, high: float, *, stored: str, whole: bool) -> Range:
    """The range that an image is shown with.

    Args:
        low: Least finite value.
        high: Largest finite value.
        stored: How values are stored, such as "16 bits".
        whole: Whether they are whole numbers.

    Examples:
        >>> shown_range(3, 3900, stored="16 bits", whole=True)
        Range(black=0, white=4095, words='12 of 16 bits')
        >>> shown_range(30000, 31000, stored="16 bits", whole=True)
        Range(black=30000, white=31000, words='16 bits scaled by its own range')
        >>> shown_range(0, 0.9, stored="floats", whole=False).white
        1
    """
    white = next((white for white in (WHITES if whole else FLOAT_WHITES) if high <= white), None)
    if low < 0 or white is None or 0 < high - low < LEAST_CONTRAST * white:
        return Range(low, high, f"{stored} scaled by its own range")
    if not whole:
        return Range(0, white, f"{stored} up to {white}")
    bits = white.bit_length()
    return Range(0, white, stored if stored == f"{bits} bits" else f"{bits} of {stored}")


def gray_in_8_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """A decoded gray image of another type as 8 bits, and in words how it was read."""
    values, stored = _values(image)
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (0, 0)
    if image.mode == "I" and image.format == "PPM":  # states its white, scaled to 65535 by Pillow
        shown = Range(0, 2**16 - 1, stored)
    else:
        whole = values.dtype.kind in "iu"
        shown = shown_range(low, high, stored=stored, whole=whole)
    gray = shown.apply(values)
    if _tag(image, 262) == 0 and image.mode != "L":  # "white is zero"; Pillow inverts 8 bits only
        np.subtract(255, gray, out=gray)
    return Image.fromarray(gray), shown.words


def is_deep_gray(image: Image.Image) -> bool:
    """Whether a decoded image is gray of more than 8 bits, of floating point, or signed."""
    return image.mode.startswith(("I", "F")) or (image.mode == "L" and _tag(image, 339) == 2)


def _values(image: Image.Image) -> tuple[NDArray[Any], str]:
    """Values as they are stored, where Pillow shows their bits as another type."""
    values = np.asarray(image)
    if image.mode == "L":
        return values.view(np.int8), "8 bits"
    if image.mode == "F":
        return values, "floats"
    if image.mode != "I" or image.format == "PPM":
        return values, "16 bits"
    bits = _tag(image, 258) or 32
    if bits == 32 and _tag(image, 339) in (None, 1):
        values = values.view(np.uint32)
    return values, f"{bits} bits"


def _tag(image: Image.Image, number: int) -> int | None:
    """First value of a TIFF's tag; None without it."""
    tags = getattr(image, "tag_v2", None)
    value = None if tags is None else tags.get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def color_in_8_bits(
    upper: Image.Image, lower: Callable[[], Image.Image]
) -> tuple[Image.Image, str]:
    """Colors of 16 bits as 8 bits, and in words how they were read; all bands share one range.

    Args:
        upper: The upper 8 bits of each band, as Pillow decodes such files.
        lower: Decodes the lower 8 bits; called where the upper ones do not suffice.
    """
    bands = [upper.getchannel(band) for band in range(3)]
    low, high = _ends([np.asarray(band) for band in bands])
    if high >= 64 and high - low > 64:  # what `shown_range` says of all 16 bits
        return upper, "16 bits"
    fine = lower()
    deep = [_sixteen(band, fine.getchannel(i)) for i, band in enumerate(bands)]
    low, high = _ends(deep)
    shown = shown_range(low, high, stored="16 bits", whole=True)
    alpha = [upper.getchannel("A")] if upper.mode == "RGBA" else []
    return Image.merge(
        upper.mode, [Image.fromarray(shown.apply(band)) for band in deep] + alpha
    ), shown.words


def _ends(bands: Sequence[NDArray[Any]]) -> tuple[int, int]:
    return min(int(band.min()) for band in bands), max(int(band.max()) for band in bands)


def _sixteen(upper: Image.Image, lower: Image.Image) -> NDArray[np.uint16]:
    values = np.asarray(upper).astype(np.uint16)
    values <<= 8
    values |= np.asarray(lower)
    return values
