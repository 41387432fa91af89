"""Reading image files: an RGB image or one of the errors in `BROKEN`, and hashes of their bytes."""

import hashlib
import importlib.util
import os
import stat
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tqdm import tqdm

from sslgh.data.depth import color_in_8_bits, gray_in_8_bits, is_deep_gray
from sslgh.distributed import dist_info
from sslgh.recipe.errors import printable

Result = TypeVar("Result")

# 16,384 x 8,192: a 108-megapixel phone photo passes. Larger ones are refused by their header, before
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
HASH_BYTES = 16
_MISSING = bytes(HASH_BYTES)
# Brands of the files that iPhones write, often renamed to .jpg.
_HEIC = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_WITH_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}
# Pillow's names of 16 bits per band, which it decodes to the upper 8, and those which read the other byte.
# "N" is the byte order of the machine.
_NATIVE = ";16B" if sys.byteorder == "little" else ";16L"
_SWAPPED = {
    f"{bands};16{order}": f"{bands}{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", ";16B"), ("B", ";16L"), ("N", _NATIVE))
}
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
def opened_image(path: Path) -> Iterator[ImageFile]:
    """The first frame of a file with its header read and its pixels still undecoded.

    The content decides on the format, not the extension. Pillow's warnings (of metadata and of sizes
    below its own limit) are silent inside, also where warnings are errors.

    Raises:
        OSError: If the file is missing, no regular file (a pipe would wait for ever), or not permitted.
        ValueError: If it is empty, or larger than `MAX_BYTES` or `MAX_PIXELS`, or of no format that is read.
    """
    with (
        open(path, "rb", opener=_opener) as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        _check_file(os.fstat(file.fileno()))
        # A file object, not its path: Pillow maps files it opens itself into memory, and one that is
        # shortened meanwhile would end the process by SIGBUS.
        try:
            image = Image.open(file, formats=_formats())
        except UnidentifiedImageError:
            raise ValueError(_unknown(file)) from None
        with image:
            _check_size(*image.size)
            yield image


def upright_rgb(image: ImageFile) -> Image.Image:
    """Decode an opened image to RGB as a viewer shows it, turned as its EXIF data say.

    More than 8 bits are read as `sslgh.data.depth` says, what is transparent lies on white as on a page, and
    inks (CMYK) count as Adobe stores them in JPEG, inverted, as in Pillow and ImageMagick. 8 bits of gray and
    color are those of the file.
    """
    return decoded_rgb(image)[0]


def decoded_rgb(image: ImageFile) -> tuple[Image.Image, list[str]]:
    """Image as `upright_rgb` returns it, and notes on how it was read."""
    file, raw_modes = image.fp, _raw_modes(image)
    image.load()
    # After loading, which turns TIFF already; and PNG, asked before, would load and lose the failure.
    turn = _UPRIGHT.get(orientation(image))
    decoded, notes = _in_8_bits(image, raw_modes, file)
    rgb, transparent = _on_white(decoded)
    notes += ["transparent"] * transparent
    return rgb if turn is None else rgb.transpose(turn), notes


def _in_8_bits(
    image: Image.Image, raw_modes: set[str], file: IO[bytes] | None
) -> tuple[Image.Image, list[str]]:
    """A decoded image as one of 8 bits per band, and in words what had to be done for it."""
    if is_deep_gray(image):
        image, words = gray_in_8_bits(image)
        return image, [words]
    if raw_modes and raw_modes <= _SWAPPED.keys() and file is not None:
        image, words = color_in_8_bits(image, partial(_lower_bits, image, file))
        return image, [words]
    deep = any(";16" in mode for mode in raw_modes)
    return image, ["CMYK"] * (image.mode == "CMYK") + ["16 bits"] * deep


def _raw_modes(image: ImageFile) -> set[str]:
    """How the pixels of an opened image are stored, in Pillow's names, such as "RGB;16B"."""
    arguments = [tile.args for tile in image.tile]
    return {str(found[0] if isinstance(found, tuple) else found) for found in arguments if found}


def _lower_bits(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Decode a file of 16 bits per band again, with its bytes swapped: Pillow keeps the upper one."""
    file.seek(0)
    with Image.open(file, formats=[str(image.format)]) as again:
        again.tile = [_swapped(tile) for tile in again.tile]
        again.load()
        return again.copy()


def _swapped(tile: Any) -> Any:
    mode, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    return tile._replace(args=(_SWAPPED[mode], *more) if more else _SWAPPED[mode])


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """A decoded image of 8 bits in RGB, and whether anything of it is transparent."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image.convert("RGB"), False
    try:
        image = image.convert("RGBA")
    except BROKEN:  # a damaged table of transparency
        image.info.pop("transparency", None)
        return image.convert("RGB"), False
    rgb, alpha = image.convert("RGB"), image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgb, False
    page = Image.new("RGB", image.size, "white")
    page.paste(rgb, mask=alpha)
    return page, True


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of a decoded image; 1 (upright) when its EXIF data are absent or broken."""
    try:
        value = image.getexif().get(0x0112, 1)
    except BROKEN:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in a few words."""
    words = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, MemoryError):
        words = "it takes more memory than there is"
    return printable((words or str(error) or type(error).__name__)[:200])


def _unknown(file: IO[bytes]) -> str:
    """What a file is that Pillow cannot identify, as far as its first bytes say."""
    file.seek(0)
    head = file.read(_HEAD)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        way = "damaged" if reads_heic() else "which is read with pip install '.[heic]'"
        return f"a HEIC file, {way}; convert it to JPEG"
    if head[:4] not in {b"II*\0", b"MM\0*"}:
        return "not a known image format"
    try:
        tags = ImageFileDirectory_v2(head[:8])
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(258, (1,))
        floating = ", floating point" if 3 in tags.get(339, ()) else ""
        damaged = 256 not in tags  # its width
    except BROKEN:
        damaged = True
    if damaged:
        return "a TIFF whose header is damaged"
    return (
        f"a TIFF of {len(bits)} bands of {bits[0]} bits{floating}, which is not read; save it as gray or RGB of 8 "
        "or 16 bits"
    )


def _opener(path: str, flags: int) -> int:
    # Without O_NONBLOCK, which Windows lacks, opening a pipe blocks until there is a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
    """The formats that this build of Pillow reads (AVIF is young), and HEIC where it is read."""
    Image.init()
    names = (*_FORMATS, "HEIF") if reads_heic() else _FORMATS
    return tuple(name for name in names if name in Image.OPEN)


@cache
def reads_heic() -> bool:
    """Whether HEIC photos are read: pillow-heif, of the extra heic, is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif  # noqa: PLC0415 - optional

    pillow_heif.register_heif_opener()
    return True


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
            found = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=HASH_BYTES))
            return found.digest()
    except OSError:
        return _MISSING
