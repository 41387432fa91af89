"""Perceptual hashes of pictures: equal pictures, whatever their size and compression, have close hashes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslgh.explore.extra import optional

BITS = 64


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of the low frequencies of a picture (pHash, as the library imagehash computes it).

    Raises:
        ValueError: If imagehash is not installed; the message has the command that installs it.
    """
    # Reduced first: the library's own filter goes over all pixels of a photo.
    small = image.resize((128, 128), Image.Resampling.BILINEAR, reducing_gap=2.0)
    bits = optional("imagehash").phash(small.convert("L")).hash
    return int("".join("1" if bit else "0" for bit in bits.ravel()), 2)


def hash_distances(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of bits, 0 to 64, in which hashes differ; the shapes broadcast.

    Examples:
        >>> hash_distances(np.uint64([0b1010]), np.uint64([0b0011])).tolist()
        [2]
    """
    counts: NDArray[np.uint8] = np.bitwise_count(first ^ second)
    return counts
