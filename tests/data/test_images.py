import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslgh.data import DataError, ImageSet

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
        in_memory().fingerprint(),
        in_memory((0, 1, 1, 0, 1, 0)).fingerprint(),
        in_memory().subset([1, 0, 2, 3, 4, 5]).fingerprint(),
        ImageSet(changed, in_memory().labels, ("cat", "dog"), tuple("abcdef")).fingerprint(),
        ImageSet(PIXELS, None, (), tuple("abcdef")).fingerprint(),
        ImageSet(PIXELS.reshape(6, 4, 5, 3), None, (), tuple("abcdef")).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert in_memory().fingerprint() == prints[0]


def test_the_fingerprint_of_files_does_not_depend_on_where_the_tree_lies(tmp_path):
    prints = []
    for place, text in (("here", "abc"), ("there", "abc"), ("changed", "abcd")):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "x.png"
        path.write_text(text)
        prints.append(ImageSet((path,), None, (), ("x.png",)).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_of_a_file_that_has_gone_names_it(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        of_file(tmp_path / "gone.png").fingerprint()


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
    grey = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    path = tmp_path / f"image.{extension}"
    Image.fromarray(grey).save(path)
    assert np.asarray(of_file(path).image(0))[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_floating_point_greys_up_to_one_fill_the_range(tmp_path):
    for values, expected in (([[0.0, 0.5, 1.0]], [0, 128, 255]), ([[0.0, 50, 300]], [0, 50, 255])):
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
