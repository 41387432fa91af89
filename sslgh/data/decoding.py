"""Reading image files: an RGB image or one of the errors in `BROKEN`, and hashes of their bytes."""

import hashlib
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from sslgh.distributed import dist_info
from sslgh.recipe.errors import printable

Result = TypeVar("Result")

# 16,384 x 8,192: the 108 megapixels of a telephone pass. Larger ones are refused by their header, before
# anything is decoded, so that a file of a few kilobytes cannot take gigabytes.
MAX_PIXELS = 2**27
# What as many pixels need uncompressed in 16-bit RGBA; some decoders read the whole file at once.
MAX_BYTES = 8 * MAX_PIXELS
# What Pillow's decoders raise for broken files, as scripts/checks/fuzz_images.py finds them; none shares a
# narrower base class. TypeError: a damaged header hands a decoder arguments of another mode, or lacks the
# sides. IndexError, KeyError, ZeroDivisionError: tables and fractions in damaged TIFF headers and EXIF data.
# MemoryError: a header asks for a tile of gigabytes, which is not given.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    ZeroDivisionError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
# Those of photos, scans and microscopes. Pillow knows more, among them EPS, for which it starts Ghostscript:
# an image file must not run a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# Threads that read files (reading and hashing leave Python's lock, and a disk answers several at once), files
# that one is given at a time, and files from which on a bar shows how far they are.
_THREADS, _CHUNK, _LONG = 8, 64, 500
# Bytes that Pillow's formats are known by.
_HEAD = 16
_MISSING = bytes(16)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """The first frame of a file with its header read and its pixels still undecoded.

    The content decides on the format, not the extension. Pillow's warnings (of metadata and of sizes
    below its own limit) are silent inside, also where warnings are errors.

    Raises:
        OSError: If the file is missing, no regular file (a pipe would wait for ever), or not permitted.
        ValueError: If it is empty, or larger than `MAX_BYTES` or `MAX_PIXELS`.
    """
    with (
        open(path, "rb", opener=_opener) as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        _check_file(os.fstat(file.fileno()))
        # A file object, not its path: Pillow maps files it opens itself into memory, and one that is
        # shortened meanwhile would end the process by SIGBUS.
        with Image.open(file, formats=_formats()) as image:
            _check_size(*image.size)
            yield image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image to RGB, turned as its EXIF data say.

    Transparency is dropped (as torchvision's loader does), 16-bit grays keep their upper 8 bits, and
    floating-point grays count 0..1 when nothing in them exceeds 1. Inks (CMYK) count as Adobe stores
    them in JPEG, inverted, as in Pillow and ImageMagick.
    """
    image.load()
    # After loading, which turns TIFF already; and PNG, asked before, would load and lose the failure.
    turn = _UPRIGHT.get(orientation(image))
    # Dropped before the conversion: tables of transparency draw a warning, broken ones an error.
    image.info.pop("transparency", None)
    rgb = _rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of a decoded image; 1 (upright) when its EXIF data are absent or broken."""
    try:
        value = image.getexif().get(0x0112, 1)
    except BROKEN:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not a known image format"
    words = error.strerror if isinstance(error, OSError) else None
    return printable((words or str(error) or type(error).__name__)[:200])


def _opener(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe blocks until there is a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("a folder, pipe or device, not a regular file")
    if status.st_size == 0:
        raise ValueError("the file is empty")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size} bytes, more than the {MAX_BYTES} that are read")


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels, more than the {MAX_PIXELS} that are decoded; scale it down"
        )


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this build of Pillow reads (AVIF is young)."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; Pillow's own conversion clips grays of more than 8 bits to white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I":
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        gray = np.nan_to_num(np.asarray(image))
        scale = 255 if gray.max() <= 1 else 1
        image = Image.fromarray((gray * scale).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def hold_images(paths: tuple[Path, ...]) -> list[Path]:
    """Files that begin as an image of a known format, whatever their name; a few bytes of each are read."""
    begun = over_files(_begins_as_image, paths, "looking into files")
    # Headers one after the other: the warnings that are silenced meanwhile are those of all threads.
    return [path for path, begins in zip(paths, begun, strict=True) if begins and _opens(path)]


def _begins_as_image(path: Path) -> bool:
    try:
        with open(path, "rb", opener=_opener) as file:
            # A pipe or a device is not read: it may have no end.
            head = file.read(_HEAD) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return False
    formats = (Image.OPEN[name][1] for name in _formats())
    return any(accepts is not None and accepts(head) is True for accepts in formats)


def _opens(path: Path) -> bool:
    try:
        with opened_image(path):
            return True
    except BROKEN:
        return False


def hash_files(paths: tuple[Path, ...]) -> bytes:
    """Hashes of the bytes of files, 16 bytes each, in order; zeros for what is no file."""
    return b"".join(over_files(_hash, paths, "hashing"))


def over_files(
    function: Callable[[Path], Result], paths: tuple[Path, ...], doing: str
) -> list[Result]:
    """What a function returns for each file, in order; a bar shows how far many files are."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    hidden = len(paths) < _LONG or dist_info().rank != 0
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(desc=doing, total=len(paths), unit="file", disable=hidden, leave=False) as bar,
    ):
        found: list[Result] = []
        for results in pool.map(partial(_over_some, function), chunks):
            bar.update(len(results))
            found.extend(results)
    return found


def _over_some(function: Callable[[Path], Result], paths: tuple[Path, ...]) -> list[Result]:
    return [function(path) for path in paths]


def _hash(path: Path) -> bytes:
    """Hash of a file's bytes; zeros if it is missing or no regular file (a pipe has no end)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return _MISSING
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).digest()
    except OSError:
        return _MISSING
