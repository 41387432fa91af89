"""HEIC photos: read where pillow-heif is installed, counted and named where it is not."""

import base64
from collections import Counter

import numpy as np
import pytest

from sslgh.data import decoding
from sslgh.data.folders import read_folder
from sslgh.data.image_set import DataError, read_image
from sslgh.data.tree import kinds, tree

# 48 x 64 pixels: the upper half red, the lower green, as a telephone stores it: lying, and to be turned by its EXIF data.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAH4AAgAAAAACagABAAAAAAAAACQAAAA4aWluZgAA"
    "AAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcn"
    "AAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroC"
    "QGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm"
    "5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAA"
    "AOY2RzYwACAAEAAQAAAKptZGF0AAAAeigBrwngOSMkv//5m7//8Cc5D9nJpwTj+Ue3/xLf//K+6tcO9zRuCSIb29g5"
    "j8UaXs7q3P7rM8qrjPDh3sDdAHlOLghZlIjWDYsa+5Z2gOEAfqxkF6KAjJg31bcStTwBqoaA0wltXBv61pQ7K0QBWk"
    "6stL2sKwP1YvxcAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


@pytest.fixture
def with_package():
    pytest.importorskip("pillow_heif")
    assert decoding.reads_heic()


@pytest.mark.parametrize("name", ["phone.HEIC", "renamed.jpg", "none"])
def test_a_photo_of_a_telephone_is_read_upright_whatever_its_name(
    with_package, tmp_path, name
) -> None:
    (tmp_path / name).write_bytes(HEIC)
    images = read_folder(tmp_path)
    assert images.names == (name,)
    pixels = np.asarray(images.image(0)).astype(int)
    assert pixels.shape == (64, 48, 3)
    assert np.abs(pixels[:24] - (200, 30, 60)).mean() < 5
    assert np.abs(pixels[40:] - (20, 180, 90)).mean() < 5


def test_damaged_ones_are_refused_and_never_crash(with_package, tmp_path) -> None:
    rng = np.random.default_rng(0)
    ended: Counter[str] = Counter()
    for _ in range(150):
        content = np.frombuffer(HEIC, dtype=np.uint8).copy()
        content[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "x.heic").write_bytes(content[: rng.integers(len(content) // 2, len(content))])
        try:
            read_image(tmp_path / "x.heic")
        except DataError:
            ended["refused"] += 1
        else:
            ended["read"] += 1
    assert ended["refused"] >= 50


def test_without_the_package_it_is_counted_and_the_remedy_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sslgh.data.tree.reads_heic", lambda: False)
    monkeypatch.setattr(decoding, "reads_heic", lambda: False)
    formats = tuple(name for name in decoding._formats() if name != "HEIF")
    monkeypatch.setattr(decoding, "_formats", lambda: formats)
    (tmp_path / "phone.heic").write_bytes(HEIC)
    (tmp_path / "renamed.jpg").write_bytes(HEIC)
    found = tree(tmp_path)
    assert [path.name for path in found.images] == ["renamed.jpg"]
    assert kinds(found) == {".heic": 1}
    with pytest.raises(
        DataError, match=r"a HEIC file, which is read with pip install '\.\[heic\]'"
    ):
        read_image(tmp_path / "renamed.jpg")
