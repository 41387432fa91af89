import io
import os
import pickle
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sslgh.data import DataError, ImageSet
from sslgh.data.decoding import MAX_BYTES, MAX_PIXELS
from sslgh.data.image_set import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def in_memory(labels=(0, 1, 1, 0, 1, 1)):
    return ImageSet(PIXELS, np.array(labels), ("cat", "dog"), tuple("abcdef"))


def of_file(path: Path) -> ImageSet:
    return ImageSet((path,), None, (), (path.name,))


def test_an_array_gives_back_its_pixels():
    images = in_memory()
    assert len(images) == 6
    assert np.array_equal(np.asarray(images.image(3)), PIXELS[3])


def test_a_subset_keeps_order_labels_names_and_classes():
    part = in_memory().subset([4, 0])
    assert np.array_equal(part.images, PIXELS[[4, 0]])
    assert part.labels.tolist() == [1, 0]
    assert part.names == ("e", "a")
    assert part.class_names == ("cat", "dog")


def test_a_subset_of_files_keeps_its_paths():
    files = ImageSet((Path("a"), Path("b"), Path("c")), None, (), ("a", "b", "c"))
    assert files.subset([2, 1]).images == (Path("c"), Path("b"))


def test_class_counts_count_classes_without_images_too():
    images = ImageSet(PIXELS, np.array([0, 2, 2, 0, 2, 2]), ("a", "b", "c", "d"), tuple("abcdef"))
    assert images.class_counts.tolist() == [2, 0, 4, 0]


def test_class_counts_need_labels():
    with pytest.raises(ValueError, match="need labels"):
        _ = ImageSet(PIXELS, None, (), tuple("abcdef")).class_counts


@pytest.mark.parametrize(
    ("labels", "classes", "names", "message"),
    [
        (None, (), "abc", "6 images need as many names, got 3"),
        (np.zeros(6, int), (), "abcdef", "go together"),
        (None, ("cat",), "abcdef", "go together"),
        (np.zeros(5, int), ("cat",), "abcdef", r"shape \(6,\), got \(5,\)"),
        (np.arange(6), ("cat",), "abcdef", r"0\.\.0, got 0\.\.5"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(labels, classes, names, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(PIXELS, labels, classes, tuple(names))


def test_the_fingerprint_changes_with_one_pixel_one_label_and_the_order():
    changed = PIXELS.copy()
    changed[5, 4, 3, 2] ^= 1
    prints = [
        in_memory().fingerprint,
        in_memory((0, 1, 1, 0, 1, 0)).fingerprint,
        in_memory().subset([1, 0, 2, 3, 4, 5]).fingerprint,
        ImageSet(changed, in_memory().labels, ("cat", "dog"), tuple("abcdef")).fingerprint,
        ImageSet(PIXELS, None, (), tuple("abcdef")).fingerprint,
        ImageSet(PIXELS.reshape(6, 4, 5, 3), None, (), tuple("abcdef")).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert in_memory().fingerprint == prints[0]


def test_the_fingerprint_of_files_does_not_depend_on_where_the_tree_lies(tmp_path):
    prints = []
    for place, text in (("here", "abc"), ("there", "abc"), ("changed", "abcd")):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "x.png"
        path.write_text(text)
        prints.append(ImageSet((path,), None, (), ("x.png",)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_changes_when_a_file_goes_and_does_not_need_it(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"")
    empty = of_file(path).fingerprint
    path.unlink()
    assert of_file(path).fingerprint != empty


def test_the_fingerprint_changes_with_other_bytes_in_a_file_of_the_same_size(tmp_path):
    path, prints = tmp_path / "x.bmp", set()
    for color in ("red", "blue"):
        Image.new("RGB", (3, 2), color).save(path)
        prints.add((path.stat().st_size, of_file(path).fingerprint))
    assert len(prints) == 2
    assert len({size for size, _ in prints}) == 1


def test_the_fingerprint_of_many_files_knows_which_holds_what(tmp_path):
    paths = tuple(tmp_path / f"{i}.png" for i in range(200))
    for i, path in enumerate(paths):
        path.write_text(f"{i:03}")

    def fingerprint() -> str:  # a set reads its files once
        return ImageSet(paths, None, (), tuple(path.name for path in paths)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    kept = ImageSet(paths, None, (), tuple(path.name for path in paths))
    assert kept.fingerprint == before
    paths[70].write_text("140")
    paths[140].write_text("070")
    assert fingerprint() != before
    assert kept.fingerprint == before
    paths[70].write_text("070")
    paths[140].write_text("140")
    assert fingerprint() == before


def test_the_fingerprint_does_not_wait_for_a_pipe(tmp_path):
    path = tmp_path / "x.png"
    gone = of_file(path).fingerprint
    os.mkfifo(path)
    assert of_file(path).fingerprint == gone


def test_a_long_hash_shows_how_far_it_is_and_a_short_one_does_not(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    assert of_file(path).fingerprint
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sslgh.data.decoding._LONG", 1)
    assert of_file(path).fingerprint
    assert "hashing" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_any_mode_becomes_rgb_as_pillow_converts_it(tmp_path, mode):
    source = Image.fromarray(PIXELS[0]).convert(mode)
    path = tmp_path / "image.tif"
    source = source.convert("RGB") if mode == "HSV" else source
    source.save(path)
    image = of_file(path).image(0)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(source.convert("RGB")))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS[0]).convert("P").save(path, transparency=bytes(range(200)))
    assert of_file(path).image(0).mode == "RGB"


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, extension):
    gray = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    path = tmp_path / f"image.{extension}"
    Image.fromarray(gray).save(path)
    assert np.asarray(of_file(path).image(0))[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_floating_point_grays_up_to_one_fill_the_range(tmp_path):
    for values, expected in (([[0.0, 0.5, 1.0]], [0, 128, 255]), ([[0.0, 50, 300]], [0, 42, 255])):
        path = tmp_path / "image.tif"
        Image.fromarray(np.array(values, dtype=np.float32)).save(path)
        assert np.asarray(of_file(path).image(0))[0, :, 0].tolist() == expected


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(PIXELS[0]).save(path, exif=exif)
    upright = np.asarray(of_file(path).image(0))
    assert np.array_equal(upright, np.rot90(PIXELS[0], k=-1))


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    Image.fromarray(np.tile(PIXELS[0], (20, 20, 1))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "truncated" else content)
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read as an image .*; repair it"):
        of_file(path).image(0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read"):
        of_file(tmp_path / "gone.jpg").image(0)


def test_the_error_keeps_its_sentence_through_a_workers_traceback_and_pickle():
    error = DataError("x.jpg is broken; repair it")
    wrapped = f"Caught DataError in DataLoader worker process 0.\nOriginal Traceback:\nsslgh.data.images.DataError: {error}\n"
    assert str(DataError(wrapped)) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert os.linesep not in str(DataError(wrapped))


def test_a_file_may_be_called_like_the_error():
    sentence = "DataError: .jpg cannot be read; repair it"
    assert str(DataError(sentence)) == sentence
    trace = f"Original Traceback:\n  raise DataError: x\nsslgh.data.images.DataError: {sentence}\n"
    assert str(DataError(f"Caught DataError in DataLoader worker process 0.\n{trace}")) == sentence


def photo(mode="RGB", size=(24, 16)):
    across = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0])
    return Image.fromarray(
        np.stack([across, across[::-1], across[:, ::-1]], 2).astype(np.uint8)
    ).convert(mode)


FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_decides_and_not_the_extension(tmp_path, kind):
    path = tmp_path / "image.jpg"
    photo().save(path, kind)
    with Image.open(path) as opened:
        assert opened.format == kind
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_refused_in_every_format(tmp_path, kind):
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        path, kind
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"image\.jpg cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_one_pixel_is_an_image(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new(mode, (1, 1)).save(path)
    image = read_image(path)
    assert (image.size, image.mode) == ((1, 1), "RGB")


def test_inks_of_a_jpeg_are_inverted_as_adobe_stores_them(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 8), (250, 40, 10)).convert("CMYK").save(path, quality=100)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(np.asarray(read_image(path)).astype(int) - (250, 40, 10)).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(tmp_path, kind):
    path = tmp_path / "image.gif"
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "lime", "blue")]
    exact = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **exact)
    assert read_image(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "PNG"])
def test_every_exif_orientation_is_that_of_pillow(tmp_path, kind, turn):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = turn
    photo().save(path, kind, exif=exif)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(expected))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\x00\x09" + b"\x01\x12\0\0\xff\xff",
    ],
)
def test_broken_exif_data_cost_the_turn_and_not_the_photo(tmp_path, exif):
    path = tmp_path / "image.jpg"
    photo().save(path, exif=exif)
    assert read_image(path).size == (24, 16)


def png(width, height, data=b""):
    """A PNG that states a size, with true checksums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for name, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")):
        parts += [
            struct.pack(">I", len(body)),
            name,
            body,
            struct.pack(">I", zlib.crc32(name + body)),
        ]
    return b"".join(parts)


@pytest.mark.parametrize(
    "size", [(16385, 8192), (2**31 - 1, 2**31 - 1), (2**27 + 1, 1), (40_000, 40_000)]
)
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size))
    with pytest.raises(DataError, match=r"bomb\.png .*(more than the 134217728|exceeds limit)"):
        read_image(path)


def test_a_size_that_pillow_warns_of_is_no_error_and_the_limit_itself_passes(tmp_path, recwarn):
    assert Image.MAX_IMAGE_PIXELS < 10_000**2 < MAX_PIXELS == 16384 * 8192
    path = tmp_path / "large.png"
    deflate = zlib.compressobj(1)
    row = deflate.compress(bytes(10_001))
    data = row + b"".join(deflate.compress(bytes(10_001)) for _ in range(9_999)) + deflate.flush()
    path.write_bytes(png(10_000, 10_000, data))
    assert read_image(path).size == (10_000, 10_000)
    assert len(recwarn) == 0


def test_a_file_of_more_bytes_than_pixels_could_fill_is_not_read(tmp_path):
    path = tmp_path / "endless.webp"
    path.write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    os.truncate(path, MAX_BYTES + 1)  # a hole: nothing is written
    with pytest.raises(DataError, match=rf"endless\.webp .*{MAX_BYTES + 1} bytes, more than"):
        read_image(path)


def make_folder(path):
    path.mkdir()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def make_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_folder, "Is a directory"),
        (os.mkfifo, "not a regular file"),
        (make_device, "not a regular file"),
        (make_socket, "No such device"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=rf"x\.jpg cannot be read as an image .*{words}"):
        read_image(tmp_path / "x.jpg")


def test_no_program_is_started_for_an_image(tmp_path):
    buffer = io.BytesIO()
    photo().save(buffer, "EPS")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="not a known image format"):
        read_image(tmp_path / "x.jpg")


def test_the_reason_is_short_and_the_path_stands_once(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, why in (
        ("gone.jpg", "No such file or directory"),
        ("empty.jpg", "the file is empty"),
    ):
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name)
        end = "repair it or take it out of the data"
        assert str(caught.value) == f"{tmp_path / name} cannot be read as an image ({why}); {end}"


def test_a_name_cannot_forge_a_line_of_the_message(tmp_path):
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a\nsslgh: all is well\x1b[2J\udcff.jpg")
    assert str(caught.value).isprintable()
    assert r"a\nsslgh: all is well\x1b[2J\udcff.jpg" in str(caught.value)
