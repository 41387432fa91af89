"""Files of every depth and type, drawn as the gray or color picture that a viewer must show."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from sslgh.data import DataError
from sslgh.data.decoding import decoded_rgb, opened_image
from sslgh.data.image_set import read_image

RNG = np.random.default_rng(0)
GRAY = RNG.integers(30, 221, (9, 14), dtype=np.uint8)  # a picture that uses a part of 8 bits
COLOR = RNG.integers(30, 221, (9, 14, 3), dtype=np.uint8)


def tiff(values, *, photometric=1, kind=1, order="<", extra=None, deflate=False):
    """A TIFF of any type: ``kind`` 1 is unsigned, 2 signed, 3 floating point."""
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    height, width, bands = (*values.shape, 1)[:3]
    tags = ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    tags[256], tags[257], tags[259], tags[262] = width, height, 8 if deflate else 1, photometric
    tags[258], tags[339] = (values.dtype.itemsize * 8,) * bands, (kind,) * bands
    tags[277], tags[278], tags[273], tags[279] = bands, height, 0, len(pixels)
    if extra is not None:
        tags[338] = extra
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + tags.tobytes(8) + pixels


def png(values):
    """A PNG of 16 bits per band."""
    height, width, bands = (*values.shape, 1)[:3]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + body))
        parts += [struct.pack(">I", len(body)), name, body, check]
    return b"".join(parts)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(tmp_path, content):
    """Pixels that the network sees, and how they were read."""
    path = tmp_path / "image"
    path.write_bytes(content)
    with opened_image(path) as image:
        _, notes = decoded_rgb(image)
    return np.asarray(read_image(path)).astype(int), notes


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("exact", [True, False])
def test_a_gray_of_any_depth_is_its_copy_of_8_bits(tmp_path, bits, exact):
    values = GRAY.astype(np.uint16)
    values = values << (bits - 8) if exact else np.rint(values * ((2**bits - 1) / 255)).astype("u2")
    for content in (
        png(values),
        tiff(values),
        tiff(values, order=">"),
        tiff(values.astype(np.uint32)),
        encoded(Image.fromarray(values), "JPEG2000"),
        encoded(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    ):
        pixels, notes = seen(tmp_path, content)
        assert np.array_equal(pixels, np.stack([GRAY] * 3, axis=2))
        assert len(notes) == 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">", "png"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_color_of_any_depth_is_its_copy_of_8_bits(tmp_path, bits, order, alpha):
    values = COLOR.astype(np.uint16) << (bits - 8)
    if alpha:
        values = np.dstack([values, np.full(COLOR.shape[:2], 65535, np.uint16)])
    more = {"extra": 2} if alpha else {}
    contents = (
        [png(values)]
        if order == "png"
        else [
            tiff(values, photometric=2, order=order, deflate=deflate, **more)
            for deflate in (False, True)
        ]
    )
    for content in contents:
        pixels, notes = seen(tmp_path, content)
        assert np.array_equal(pixels, COLOR)
        assert notes == [f"{bits} of 16 bits" if bits < 16 else "16 bits"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (GRAY / np.float32(255), "floats up to 1"),
        (GRAY.astype(np.float32), "floats up to 255"),
    ],
)
def test_floating_point_of_a_known_white_is_its_copy_of_8_bits(tmp_path, values, words):
    pixels, notes = seen(tmp_path, tiff(values, kind=3))
    assert np.abs(pixels[..., 0] - GRAY).max() == 0
    assert notes == [words]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda v: tiff((v * 4 + 30_000).astype(np.uint16)), "16 bits"),
        (lambda v: png((v * 4 + 30_000).astype(np.uint16)), "16 bits"),
        (lambda v: tiff((v * 16.0 - 2048).astype(np.int16), kind=2), "16 bits"),
        (lambda v: tiff((v * 1000.0 - 90_000).astype(np.int32), kind=2), "32 bits"),
        (lambda v: tiff((v * 8e6 + 2**31).astype(np.uint32)), "32 bits"),
        (lambda v: tiff((v - 128.0).astype(np.int8), kind=2), "8 bits"),
        (lambda v: tiff((v / 1e6).astype(np.float32), kind=3), "floats"),
        (lambda v: tiff((v - 100).astype(np.float32), kind=3, order=">"), "floats"),
        (lambda v: tiff((v * 1e9).astype(np.float32), kind=3), "floats"),
    ],
)
def test_what_has_no_known_white_is_scaled_by_its_own_range(tmp_path, content, words):
    pixels, notes = seen(tmp_path, content(GRAY.astype(np.float64)))
    span = float(GRAY.max()) - float(GRAY.min())
    expected = (GRAY.astype(np.float64) - GRAY.min()) / span * 255
    assert np.abs(pixels - expected[..., None]).max() <= 1
    assert notes == [f"{words} scaled by its own range"]


def test_colors_of_a_narrow_part_share_one_range(tmp_path):
    values = COLOR.astype(np.uint16) * 4 + 30_000
    for content in (png(values), tiff(values, photometric=2)):
        pixels, notes = seen(tmp_path, content)
        low, high = float(COLOR.min()), float(COLOR.max())
        assert np.abs(pixels - (COLOR - low) / (high - low) * 255).max() <= 1
        assert notes == ["16 bits scaled by its own range"]


@pytest.mark.parametrize("value", [0, 7, 1000, 65535])
def test_an_even_image_has_no_range_to_scale(tmp_path, value):
    pixels, _ = seen(tmp_path, tiff(np.full((3, 4), value, np.uint16)))
    bits = next(bits for bits in (8, 10, 12, 14, 16) if value < 2**bits)
    assert (pixels == value >> (bits - 8)).all()
    pixels, _ = seen(tmp_path, tiff(np.full((3, 4), -5, np.int16), kind=2))
    assert (pixels == 0).all()


def test_values_that_are_no_numbers_spoil_no_others(tmp_path):
    values = (GRAY / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels, _ = seen(tmp_path, tiff(values, kind=3))
    assert pixels[0, :3, 0].tolist() == [0, 255, 0]
    assert np.array_equal(pixels[1:, :, 0], GRAY[1:])
    pixels, _ = seen(tmp_path, tiff(np.full((2, 2), np.nan, np.float32), kind=3))
    assert (pixels == 0).all()


def test_a_file_that_states_its_white_is_read_by_it(tmp_path):
    dark = GRAY // 8  # would count as 10 bits of 12 by its values
    for maxval, scale in ((4095, 16), (65535, 257)):
        values = (dark.astype(np.uint16) * scale).astype(">u2").tobytes()
        content = f"P5 {GRAY.shape[1]} {GRAY.shape[0]} {maxval}\n".encode() + values
        pixels, _ = seen(tmp_path, content)
        assert np.abs(pixels[..., 0] - dark).max() <= (1 if maxval == 4095 else 0)


def test_white_may_be_zero(tmp_path):
    for values, kind in ((GRAY, 1), (GRAY.astype(np.uint16) << 8, 1), (GRAY / np.float32(255), 3)):
        pixels, _ = seen(tmp_path, tiff(values, photometric=0, kind=kind))
        assert np.array_equal(pixels[..., 0], 255 - GRAY)


def on_white(rgb, alpha):
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_lies_on_white(tmp_path, kind):
    alpha = np.full(COLOR.shape[:2], 255, np.uint8)
    alpha[:3], alpha[3:5] = 0, 100
    image = Image.fromarray(np.dstack([COLOR, alpha]))
    exact = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels, notes = seen(tmp_path, encoded(image, kind, **exact))
    assert np.abs(pixels - on_white(COLOR, alpha)).max() <= 1
    assert notes == ["transparent"]


def test_gray_and_palettes_with_transparency_lie_on_white(tmp_path):
    alpha = np.where(GRAY > 128, 255, 0).astype(np.uint8)
    image = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)])
    expected = on_white(np.stack([GRAY] * 3, axis=2), alpha)
    assert np.array_equal(seen(tmp_path, encoded(image, "PNG"))[0], expected)
    table = bytes(255 * (value > 128) for value in range(256))
    indexed = Image.fromarray(GRAY)
    indexed.putpalette([value for value in range(256) for _ in range(3)])
    assert np.array_equal(seen(tmp_path, encoded(indexed, "PNG", transparency=table))[0], expected)
    one = int(GRAY[0, 0])
    expected = np.where(one == GRAY, 255, GRAY)
    for content in (
        encoded(indexed, "PNG", transparency=one),
        encoded(indexed, "GIF", transparency=one),
        encoded(Image.fromarray(GRAY), "PNG", transparency=one),
    ):
        assert np.array_equal(seen(tmp_path, content)[0][..., 0], expected)


def test_a_damaged_table_of_transparency_costs_no_image(tmp_path):
    content = encoded(Image.fromarray(COLOR), "PNG", transparency=(300, 2, 3))
    assert np.array_equal(seen(tmp_path, content)[0], COLOR)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *itertools.product(("PNG", "TIFF", "BMP"), ("RGB", "L", "P", "1")),
        *itertools.product(("JPEG", "WEBP"), ("RGB", "L")),
    ],
)
def test_eight_bits_are_those_of_the_file(tmp_path, kind, mode):
    content = encoded(Image.fromarray(COLOR).convert(mode), kind)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    pixels, notes = seen(tmp_path, content)
    assert np.array_equal(pixels, expected)
    assert notes == []


def test_inks_are_read_and_reported(tmp_path):
    image = Image.new("RGB", (8, 8), (250, 40, 10)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        pixels, notes = seen(tmp_path, encoded(image, kind))
        assert np.abs(pixels - (250, 40, 10)).max() <= 6
        assert notes == ["CMYK"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (tiff(np.zeros((3, 4, 5), np.uint16)), "a TIFF of 5 bands of 16 bits, which is not read"),
        (
            tiff(np.zeros((3, 4, 3), np.float32), photometric=2, kind=3),
            "a TIFF of 3 bands of 32 bits, floating point, which is not read",
        ),
        (b"II*\0\xff\xff\xff\xff", "a TIFF whose header is damaged"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file, "),
        (b"GIF is not this", "not a known image format"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"image\.jpg cannot be read as an image \({sentence}"):
        read_image(path)
