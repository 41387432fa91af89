import io
import os

import numpy as np
import pytest
from PIL import Image

from sslgh.data.folders import read_folder
from sslgh.data.tree import UNREAD, kinds, tree

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def content(kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["photo", "photo.JFIF", "photo.jpe", "photo.dat", "photo.txt", "a.b"]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_of_any_name_is_an_image(tmp_path, kind, name):
    (tmp_path / name).write_bytes(content(kind))
    images = read_folder(tmp_path)
    assert images.names == (name,)
    assert images.image(0).size == (16, 12)


def test_what_is_left_out_is_counted_by_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("sslgh.data.tree.reads_heic", lambda: False)
    contents = {
        "notes.txt": b"P3 is a format, BM another\n",
        "more.TXT": b"II*",
        "movie.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "page.pdf": b"%PDF-1.7",
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "camera.nef": content("TIFF"),  # begins as TIFF, with a preview
        "model.npz": b"PK\3\4",
        "empty": b"",
        "short": b"\xff\xd8",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b.png").write_bytes(b"a download that failed")
    os.mkfifo(tmp_path / "pipe")
    found = tree(tmp_path)
    assert [path.name for path in found.images] == ["b.png"]
    assert kinds(found) == {
        "": 3,
        ".txt": 2,
        ".heic": 1,
        ".mp4": 1,
        ".nef": 1,
        ".npz": 1,
        ".pdf": 1,
    }
    assert ".nef" in UNREAD


def test_hidden_files_and_those_of_the_system_are_counted_and_not_looked_into(tmp_path):
    for name in (".a.png", "._b.png", "@eaDir/c.png", "$RECYCLE.BIN/d.png", "e/.f/g.png", "h.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content("PNG"))
    found = tree(tmp_path)
    assert [path.name for path in found.images] == ["h.png"]
    assert sorted(path.name for path in found.hidden) == [
        "$RECYCLE.BIN",
        "._b.png",
        ".a.png",
        ".f",
        "@eaDir",
    ]


def test_a_file_of_unknown_name_without_permission_is_left_out(unprivileged):
    (unprivileged / "secret").write_bytes(content("PNG"))
    (unprivileged / "secret").chmod(0)
    assert kinds(tree(unprivileged)) == {"": 1}


def test_known_names_are_not_opened(tmp_path, monkeypatch):
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(content("JPEG"))
    monkeypatch.setattr("sslgh.data.decoding._begins_as_image", lambda path: 1 / 0)
    assert len(tree(tmp_path).images) == 10
