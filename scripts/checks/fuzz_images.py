"""Corruption test: thousands of damaged image files are each read or refused, in bounded time and memory.

    python scripts/checks/fuzz_images.py [--count 1000] [--seed 0] [--keep FOLDER]

Real photos (those in the cache) and drawn images of every format are
damaged and read by `read_image` and by the scan's `examine`, in child processes that may use `BOUND`
more address space and `SECONDS` of CPU time per file. Prints one line of figures; exit 1 if anything but an image or
a DataError came out. ``--keep`` writes the files that failed there.
"""

import argparse
import io
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from sslgh.data import DataError
from sslgh.data.decoding import MAX_PIXELS
from sslgh.data.image_set import read_image
from sslgh.scan.scan import examine

PHOTOS = Path.home() / ".cache/sslgh-data/photos-lt"
SECONDS = 10
LARGEST_SIDE = 20_000
# What `read_image` promises: bytes per pixel in the worst case, times the most pixels.
BOUND = 24 * MAX_PIXELS
GOOD = ("read", "refused")
PNG = b"\x89PNG\r\n\x1a\n"


class Outcome(NamedTuple):
    """What came of one file: "read", "refused" or what went wrong; seconds; bytes of memory more."""

    what: str
    seconds: float
    memory: int


def drawn_images(rng: np.random.Generator) -> list[bytes]:
    """One file of every format and kind that Pillow writes and we read."""
    color = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (40, 56), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    turned = {"exif": exif}
    frames = {"save_all": True, "append_images": [color.rotate(9), color.rotate(99)]}
    compressions = (
        "raw",
        "tiff_lzw",
        "tiff_adobe_deflate",
        "jpeg",
        "packbits",
        "tiff_lzma",
        "zstd",
    )
    kinds: list[tuple[Image.Image, str, dict]] = [
        (color, "JPEG", turned),
        (color, "JPEG", {"progressive": True, "quality": 40}),
        (color.convert("CMYK"), "JPEG", {}),
        (color.convert("L"), "JPEG", {"icc_profile": bytes(range(200))}),
        (color, "PNG", turned),
        (deep, "PNG", {}),
        (color.convert("P"), "PNG", {"transparency": bytes(range(100))}),
        (color.convert("RGBA"), "PNG", {}),
        (color.convert("1"), "PNG", {}),
        (color, "PNG", frames),
        (color, "GIF", frames),
        (color.convert("L"), "GIF", {"transparency": 3}),
        (color, "WEBP", turned),
        (color.convert("RGBA"), "WEBP", {"lossless": True}),
        (color, "WEBP", frames),
        (color, "BMP", {}),
        (color.convert("P"), "BMP", {}),
        (color, "PPM", {}),
        (deep, "PPM", {}),
        (color.convert("1"), "TIFF", {"compression": "group4"}),
        (Image.fromarray(rng.random((40, 56), dtype=np.float32)), "TIFF", {}),
        (color, "TIFF", frames),
        *((color, "TIFF", {"compression": name, **turned}) for name in compressions),
        *((deep, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw")),
        (color.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}),
        (color.convert("LA"), "PNG", {}),
        (color.convert("LAB"), "TIFF", {}),
        (color, "JPEG2000", {}),
        (deep, "JPEG2000", {}),
        (Image.fromarray(rng.integers(-9, 9, (40, 56), dtype=np.int32)), "TIFF", {}),
        (color.convert("RGBA"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        *([(color, "AVIF", turned)] if "AVIF" in Image.SAVE else []),
    ]
    deep_color = rng.integers(0, 4096, (40, 56, 3), dtype=np.uint16)  # 12 of 16 bits
    files = [_interlaced_png(), _deep_png(deep_color), _deep_tiff(deep_color)]
    return [_file(*kind) for kind in kinds] + [*files, b"P3 2 1 255 1 2 3 4 5 6"]


def _file(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _interlaced_png() -> bytes:
    """Black, gray, 3x3 pixels in the passes of Adam7, which Pillow reads and does not write."""
    rows = b"".join(b"\0" + bytes(width) for width in (1, 1, 2, 1, 1, 3))
    head = struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 1)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return _png(chunks)


def _deep_png(pixels: np.ndarray) -> bytes:
    """Colors of 16 bits, which Pillow reads and does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return _png([(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def _deep_tiff(pixels: np.ndarray) -> bytes:
    tags = ImageFileDirectory_v2()
    numbers = {256: pixels.shape[1], 257: pixels.shape[0], 259: 1, 262: 2, 273: 0, 277: 3}
    tags[258] = (16, 16, 16)
    for tag, value in (numbers | {278: pixels.shape[0], 279: pixels.nbytes}).items():
        tags[tag] = value
    return b"II*\0\x08\0\0\0" + tags.tobytes(8) + pixels.astype("<u2").tobytes()


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Chunks with the checksums they need to be believed."""
    parts = [PNG]
    for name, body in chunks:
        parts += [
            struct.pack(">I", len(body)),
            name,
            body,
            struct.pack(">I", zlib.crc32(name + body)),
        ]
    return b"".join(parts)


def _chunks(file: bytes) -> list[tuple[bytes, bytes]]:
    """Chunks of a PNG, as far as their lengths can be followed."""
    chunks, at = [], len(PNG)
    while at + 12 <= len(file):
        length = int.from_bytes(file[at : at + 4], "big")
        chunks.append((file[at + 4 : at + 8], file[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def damaged(file: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A file after one to three mutations; half of the damaged PNGs get true checksums again."""
    for _ in range(rng.integers(1, 4)):
        file = MUTATIONS[rng.integers(len(MUTATIONS))](file, other, rng)
    if file.startswith(PNG) and rng.random() < 0.5:
        file = _png(_chunks(file))
    return file


def _place(file: bytes, rng: np.random.Generator) -> int:
    """Half of the damage falls into the first 200 bytes, where the header is."""
    return int(rng.integers(1 + (min(len(file), 200) if rng.random() < 0.5 else len(file))))


def _flipped(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    array = bytearray(file)
    for _ in range(rng.integers(1, 20)):
        if array:
            array[_place(file, rng) % len(array)] ^= 1 << int(rng.integers(8))
    return bytes(array)


def _truncated(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    return file[: _place(file, rng)]


def _inserted(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    at = _place(file, rng)
    return file[:at] + rng.bytes(int(rng.integers(1, 50))) + file[at:]


def _deleted(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    at = _place(file, rng)
    return file[:at] + file[at + int(rng.integers(1, 50)) :]


def _swapped(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Two chunks of a PNG, two stretches of any other file, in each other's place."""
    if file.startswith(PNG) and len(chunks := _chunks(file)) > 1:
        i, j = rng.integers(len(chunks), size=2)
        chunks[i], chunks[j] = chunks[j], chunks[i]
        return _png(chunks)
    a, b, c = sorted(_place(file, rng) for _ in range(3))
    return file[:a] + file[b:c] + file[a:b] + file[c:]


def _enlarged(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A length or a side set to a large number, wherever in the header."""
    sizes = [
        b"\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\0\0\x2f\0",
        b"\0\x2f\0\0",
        b"\0" * 4,
    ]
    size = sizes[rng.integers(len(sizes))]
    at = int(rng.integers(1 + min(len(file), 120)))
    return file[:at] + size + file[at + len(size) :]


def _resized(file: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Both sides set to up to `LARGEST_SIDE` where the format keeps them: bombs, some below the limit."""
    kinds = {PNG: (">II", 16), b"GIF8": ("<HH", 6), b"BM": ("<II", 18), b"\xff\xd8": (">HH", 5)}
    # In a JPEG behind the marker of the frame, baseline or progressive.
    frame = max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2"))
    for magic, (layout, offset) in kinds.items():
        if file.startswith(magic):
            at = offset + (frame if magic == b"\xff\xd8" else 0)
            sides = struct.pack(
                layout, *(int(side) for side in rng.integers(1, LARGEST_SIDE, size=2))
            )
            file = file[:at] + sides + file[at + len(sides) :]
            return _png(_chunks(file)) if magic == PNG else file
    return _enlarged(file, _, rng)


def _spliced(file: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return file[: _place(file, rng)] + other[_place(other, rng) :]


MUTATIONS = (_flipped, _truncated, _inserted, _deleted, _swapped, _enlarged, _resized, _spliced)


def outcome(path: Path) -> Outcome:
    """Read one file both ways, in this process; seconds are of the slower."""
    reading, seconds = _timed(lambda: read_image(path).size)
    scanning, more = _timed(lambda: examine(path).fault)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Outcome(_verdict(reading, scanning), max(seconds, more), memory)


def _timed(read: Callable[[], object]) -> tuple[object, float]:
    """What a call returns or raises, and the seconds of this process it takes."""
    start = time.process_time()
    # Of this process, so that a busy machine is no fault; the wall's clock for what would wait for ever.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    try:
        answer = read()
    except BaseException as error:  # what is looked for
        answer = error
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return answer, time.process_time() - start


def _verdict(reading: object, scanning: object) -> str:
    if isinstance(reading, DataError):
        what = "refused" if "\n" not in str(reading) else f"not one sentence: {reading}"
    else:
        what = "read" if isinstance(reading, tuple) and min(reading) > 0 else repr(reading)
    agrees = scanning is None if what == "read" else isinstance(scanning, str)
    return what if agrees or what not in GOOD else f"{what}, but the scan says {scanning!r}"


def outcomes(paths: list[Path]) -> list[Outcome]:
    """What comes of each file, in child processes; one that dies is the fault of its file."""
    context = multiprocessing.get_context("fork")
    found: list[Outcome] = []
    while len(found) < len(paths):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(paths[len(found) :], theirs))
        child.start()
        theirs.close()
        try:
            while len(found) < len(paths):
                found.append(Outcome(*ours.recv()))
        except EOFError:
            child.join()
            hung = child.exitcode in {-signal.SIGALRM, -signal.SIGPROF}
            end = "hang" if hung else f"exit {child.exitcode}"
            found.append(Outcome(f"the process ended: {end}", SECONDS, 0))
        child.join()
        ours.close()
    return found


def _child(paths: list[Path], pipe: multiprocessing.connection.Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + BOUND
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Left to their defaults, alarms end the process even inside a decoder written in C.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for path in paths:
        result = outcome(path)
        pipe.send((result.what, result.seconds, result.memory - before))


def damaged_files(folder: Path, *, count: int, seed: int, photos: Path = PHOTOS) -> list[Path]:
    """Write ``count`` damaged files, of every kind in turn, and say where."""
    rng = np.random.default_rng(seed)
    intact = drawn_images(rng)
    real = sorted(photos.glob("*/*/*.JPEG"))
    if real:
        intact += [real[i].read_bytes() for i in rng.choice(len(real), min(10, len(real)), False)]
    # Names of others: the content decides.
    suffixes = (".jpg", ".png", ".tif", ".dat", "")
    paths = [folder / f"{i:05}{suffixes[i % len(suffixes)]}" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(damaged(intact[i % len(intact)], intact[rng.integers(len(intact))], rng))
    return paths


def main() -> None:
    """Print the figures; exit 1 if a file was neither read nor refused."""
    parser = argparse.ArgumentParser(description="Read damaged images.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = damaged_files(Path(folder), count=arguments.count, seed=arguments.seed)
        found = outcomes(paths)
        for path, result in zip(paths, found, strict=True):
            if result.what in GOOD:
                continue
            print(f"{path.name}: {result.what}", file=sys.stderr)
            if arguments.keep:
                (arguments.keep / path.name).write_bytes(path.read_bytes())
    print(figures(found))
    sys.exit(any(result.what not in GOOD for result in found))


def figures(found: list[Outcome]) -> str:
    """One line."""
    counts = Counter(result.what if result.what in GOOD else "failed" for result in found)
    return (
        f"{len(found)} damaged files: {counts['read']} read, {counts['refused']} refused, "
        f"{counts['failed']} failed; slowest {max(r.seconds for r in found):.2f} s of {SECONDS}, "
        f"memory {max(r.memory for r in found) / 2**20:.0f} MiB of {BOUND / 2**20:.0f}"
    )


if __name__ == "__main__":
    main()
