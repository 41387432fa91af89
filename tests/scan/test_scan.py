import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from sslgh.cli import main
from sslgh.data import DataError, training_set
from sslgh.recipe.data import Data
from sslgh.scan.processes import map_processes
from sslgh.scan.report import scan_record, scan_text
from sslgh.scan.scan import scan_folder


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def draw(path, value=0, size=(6, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def messy(tmp_path):
    """A folder with one of everything."""
    root = tmp_path / "photos"
    draw(root / "cat" / "1.png", 1)
    draw(root / "cat" / "2.jpg", 2, size=(30, 20))
    draw(root / "dog" / "3.png", 3)
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "1.png").read_bytes())
    (root / "dog" / "empty.png").write_bytes(b"")
    (root / "dog" / "half.jpg").write_bytes((root / "cat" / "2.jpg").read_bytes()[:300])
    (root / "dog" / "half.png").write_bytes(
        draw(root / "large.png", 4, (64, 64)).read_bytes()[:5000]
    )
    (root / "large.png").unlink()
    (root / "dog" / "gone.png").symlink_to("nowhere")
    (root / "lost").symlink_to("nowhere")
    (root / "notes.TXT").write_text("x")
    (root / "Makefile").write_text("x")
    return root


def test_a_scan_finds_everything_that_is_wrong(messy):
    record = scan_record(scan_folder(messy, workers=2))
    sizes = sum(path.stat().st_size for path in messy.glob("*/*.*g") if path.exists())
    assert record == {
        "folder": str(messy),
        "images": 8,
        "bytes": sizes,
        "formats": {"PNG": 3, "JPEG": 1},
        "sides": {"smallest": 4, "median": 6, "largest": 30},
        "notes": {},
        "splits": {},
        "left_out": {},
        "classes": {"": {"dog": 6, "cat": 2}},
        "broken": {
            "dog/empty.png": "the file is empty",
            "dog/gone.png": "No such file or directory",
            "dog/half.jpg": record["broken"]["dog/half.jpg"],
            "dog/half.png": record["broken"]["dog/half.png"],
        },
        "duplicates": [["cat/1.png", "dog/copy.png"]],
        "leaks": [],
        "conflicts": [["cat/1.png", "dog/copy.png"]],
        "skipped": {"": 1, ".txt": 1},
        "hidden": 0,
        "dangling": ["lost"],
        "unreadable": {},
    }


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("1.jpg", {"mode": "CMYK"}, "CMYK"),
        ("1.png", {"mode": "I;16"}, "8 of 16 bits"),
        ("1.tif", {"mode": "I;16"}, "8 of 16 bits"),
        ("1.tif", {"mode": "F"}, "floats up to 1"),
        ("1.png", {"mode": "RGBA"}, "transparent"),
        ("1.gif", {"frames": 3}, "several frames"),
        ("1.webp", {"frames": 3}, "several frames"),
        ("1.tif", {"turn": 6}, "EXIF-rotated"),
        ("1.jpg", {"turn": 3}, "EXIF-rotated"),
        ("1.png", {"turn": 1}, None),
    ],
)
def test_modes_worth_knowing_are_counted(tmp_path, name, options, note):
    image = Image.new(options.get("mode", "RGB"), (8, 6))
    exif = Image.Exif()
    exif[0x0112] = options.get("turn", 1)
    more = [Image.new("RGB", (8, 6), (i, i, 99)) for i in range(1, options.get("frames", 1))]
    several = {"save_all": True, "append_images": more} if more else {}
    image.save(tmp_path / name, **several, **({"exif": exif} if "turn" in options else {}))
    record = scan_record(scan_folder(tmp_path))
    assert record["notes"] == ({} if note is None else {note: 1})
    assert (f"read as: {note} (1)" in scan_text(scan_folder(tmp_path))) == (note is not None)
    assert record["broken"] == {}


def test_the_exit_code_says_whether_all_can_be_read(messy, tmp_path, capsys):
    assert call("scan", messy) == 1
    out = capsys.readouterr().out
    for line in (
        "8 images",
        "formats: 3 PNG, 1 JPEG",
        "2 classes (0 many, 0 medium, 2 few)",
        "broken: 4 of 8 images\n",
        "  dog/empty.png: the file is empty\n",
        "broken links: 1\n  lost\n",
        "conflicts: 1 images are under more than one class\n  cat/1.png = dog/copy.png\n",
        "exact duplicates: 1 files",
        "  cat/1.png = dog/copy.png\n",
        "skipped files: 1 without suffix, 1 .txt",
    ):
        assert line in out
    assert call("scan", "--json", messy) == 1
    assert json.loads(capsys.readouterr().out)["duplicates"] == [["cat/1.png", "dog/copy.png"]]
    for name in ("empty.png", "half.jpg", "half.png", "gone.png"):
        (messy / "dog" / name).unlink()
    assert call("scan", messy) == 1  # the same photo is still a cat and a dog
    (messy / "dog" / "copy.png").rename(messy / "cat" / "copy.png")
    assert call("scan", messy) == 0
    assert call("scan", tmp_path / "gone") == 2
    assert "gone is not a folder; give" in capsys.readouterr().err
    assert call("scan", messy / "Makefile") == 2


def test_an_empty_folder_is_scanned_too(tmp_path, capsys):
    assert call("scan", tmp_path) == 0
    assert "0 images" in capsys.readouterr().out


def test_names_cannot_forge_lines_nor_stop_the_printing(tmp_path, capsys, monkeypatch):
    bad = ["broken: 0 of 0\n.png", "\x1b[2J.png", os.fsdecode(b"\xff.png"), "k\u00f6ter.png"]
    for name in bad:
        (tmp_path / name).write_bytes(b"x")
    draw(tmp_path / "a.png")
    (tmp_path / "x.\x1b[2J").write_text("x")
    text = scan_text(scan_folder(tmp_path))
    assert all(line.isprintable() for line in text.split("\n"))
    assert len([line for line in text.split("\n") if line.startswith("broken")]) == 1
    assert call("scan", "--json", tmp_path) == 1
    assert set(json.loads(capsys.readouterr().out)["broken"]) == set(bad)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert call("scan", tmp_path) == 1
    terminal.flush()
    assert rb"k\xf6ter.png" in terminal.buffer.getvalue()


def test_one_process_and_several_find_the_same(messy):
    assert scan_folder(messy, workers=1) == scan_folder(messy, workers=3)


def test_a_loop_of_links_ends_and_a_folder_counts_once(messy):
    (messy / "cat" / "up").symlink_to(messy)
    assert len(scan_folder(messy).files) == 8


def test_a_file_is_no_folder(messy):
    with pytest.raises(DataError, match="is not a folder"):
        scan_folder(messy / "Makefile")


def test_many_lines_are_cut_in_the_text_and_broken_files_never(tmp_path):
    for i in range(50):
        draw(tmp_path / f"{i:02}" / "1.png", i)
        (tmp_path / f"{i:02}" / "2.png").write_bytes(b"")
    text = scan_text(scan_folder(tmp_path))
    assert text.count("the file is empty") == 50
    assert "  ... 10 more (--json lists all)" in text


def test_classes_that_only_the_test_folder_has_are_named(tmp_path):
    for i, name in enumerate(("Train/a", "Train/b", "Test/a", "Test/c")):
        draw(tmp_path / name / "1.png", i)
    text = scan_text(scan_folder(tmp_path))
    assert "test classes without a training image, which are refused: c" in text


def test_a_tree_with_loose_images_has_no_classes(tmp_path):
    for i, name in enumerate(("a/1.png", "b/1.png", "2.png")):
        draw(tmp_path / name, i)
    assert scan_record(scan_folder(tmp_path))["classes"] == {}


# One image per letter; what is in train/ and test/ decides what each pair of equal images is.
@pytest.mark.parametrize(
    ("files", "leaking", "conflicting"),
    [
        ("train/a/x train/b/y test/a/z", 0, 0),
        ("train/a/x train/a/x2 train/b/y test/a/z", 0, 0),  # twice in one place is a duplicate only
        ("train/a/x train/b/y test/a/x", 1, 0),
        ("train/a/x train/b/x test/a/z", 0, 1),
        ("train/a/x train/b/y test/b/x test/a/z", 1, 1),
        ("train/a/x train/b/y test/b/x", 1, 1),  # one class folder in the test split
        ("train/x val/x", 1, 0),
        ("train/x test/y extra/x", 0, 0),  # left out
        ("a/x b/x", 0, 1),
        ("a/x b/x y", 0, 0),  # no classes
    ],
)
def test_equal_images_in_two_splits_leak_and_under_two_classes_conflict(
    tmp_path, files, leaking, conflicting
):
    for i, name in enumerate(files.split()):
        draw(tmp_path / f"{name}{i}.png", ord(name.rpartition("/")[2][0]))
    scan = scan_folder(tmp_path)
    record = scan_record(scan)
    assert (len(record["leaks"]), len(record["conflicts"])) == (leaking, conflicting)
    assert scan.is_sound == (leaking + conflicting == 0)
    assert ("leaks: 1 images" in scan_text(scan)) == (leaking == 1)


def test_a_scan_says_what_is_trained_on_and_what_is_left_out(tmp_path):
    names = (
        "train/a/1.png",
        "train/b/2.png",
        "test/a/3.png",
        "val/b/4.png",
        "extra/5.png",
        "6.png",
    )
    for i, name in enumerate(names):
        draw(tmp_path / name, i)
    for name in ("__MACOSX/1.txt", ".cache/2.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    scan = scan_folder(tmp_path)
    text = scan_text(scan)
    assert "splits: 2 in train, 1 in test, 1 in val" in text
    assert "neither trained nor tested on: 1 in no folder, 1 in extra, 1 in val" in text
    assert "skipped files: 1 .txt, 2 hidden" in text
    trained = training_set(Data(source="folder", root=tmp_path))
    assert trained.class_counts.tolist() == list(scan_record(scan)["classes"]["train"].values())


def ends_at_five(item: int) -> int:
    if item == 5:
        os._exit(9)
    return item * 10


def test_an_item_that_ends_its_process_is_named_and_the_others_are_answered():
    found = map_processes(ends_at_five, range(40), crashed=lambda item: -item, workers=2)
    assert list(found) == [-5 if i == 5 else i * 10 for i in range(40)]


def test_a_report_is_refused_before_the_scan_and_made_after_it_is_shown(
    tmp_path, capsys, monkeypatch
) -> None:
    photos = draw(tmp_path / "photos" / "1.png").parent
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos.csv").touch()
    assert call("scan", photos, "--report", "--out", tmp_path / "mine") != 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "give --out a new or empty folder" in shown.err

    def fail(*_):
        raise DataError("no network")

    monkeypatch.setattr("sslgh.report.scan_command.likeness", fail)
    assert call("scan", photos, "--report", "--out", tmp_path / "new") != 0
    shown = capsys.readouterr()
    assert shown.out == scan_text(scan_folder(photos)) + "\n"
    assert "no network" in shown.err
