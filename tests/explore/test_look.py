"""Tables and messages of `look`, on drawn photos through a small network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslgh.data.image_set import DataError
from sslgh.explore.look import FIRST_COLUMNS, last_lines, look_folder, results_folder
from sslgh.explore.select import select
from sslgh.explore.thumbnails import data_uri, thumbnail
from sslgh.report.look_page import look_page

HOSTILE = 'a<script>alert(1)</script>, "x"\ny.png'


@pytest.fixture
def looked(photos, model, tmp_path, draw):
    """Photos with a copy of one, a hostile name, and splits."""
    (photos / "train").mkdir()
    for name in ("b.png", "a", "c"):
        (photos / name).rename(photos / "train" / name)
    draw(photos / "test" / HOSTILE, 50)
    draw(photos / "test" / "copy.png", 1)
    return look_folder(photos, tmp_path / "out", model, workers=0, budget=4)


def test_the_tables_hold_every_photo_once_under_its_exact_name(read, looked) -> None:
    photos = read(looked.out / "photos.csv")
    names = {
        f"train/{n}" for n in ("b.png", "a/1.png", "a/2.png", "c/x/3.png", "c/4.png", "c/5.png")
    }
    assert {row["file"] for row in photos} == names | {f"test/{HOSTILE}", "test/copy.png"}
    assert [row["split"] for row in photos].count("test") == 2
    assert {row["faults"] for row in photos} == {"tiny"}
    assert {(row["width"], row["height"]) for row in photos} == {("24", "20")}
    groups = read(looked.out / "groups.csv")
    assert sum(int(row["photos"]) for row in groups) == 8
    assert looked.embeddings.skipped == {"train/a/broken.jpg": "not a known image format"}


def test_a_copy_across_splits_is_a_leak(read, looked) -> None:
    copies = read(looked.out / "duplicates.csv")
    assert [(row["file"], row["leak"]) for row in copies] == [
        ("test/copy.png", "yes"),
        ("train/a/1.png", "yes"),
    ]
    assert "1 of their groups across splits" in "\n".join(last_lines(looked, 3))


def test_the_list_to_label_holds_no_copy_and_keeps_what_is_filled_in(
    read, looked, model, photos
) -> None:
    path = looked.out / "label_first.csv"
    rows = read(path)
    assert tuple(rows[0]) == FIRST_COLUMNS
    files = [row["file"] for row in rows]
    assert len(set(files)) == len(files) == 4
    assert not {"test/copy.png", "train/a/1.png"} <= set(files)
    filled = f"file,kind,group,reason\n{files[0]},gull,1,x\n"
    for name in ("label_first.csv", "label_first_2.csv"):
        (looked.out / name).write_text(filled)
        for _ in range(2):
            look_folder(photos, looked.out, model, workers=0, budget=4)
    assert path.read_text() == (looked.out / "label_first_2.csv").read_text() == filled
    assert len(read(looked.out / "label_first_3.csv")) == 4
    assert not (looked.out / "label_first_4.csv").exists()


def test_a_budget_larger_than_the_folder_lists_every_photo_but_copies(looked) -> None:
    found = looked.findings
    assert len(select(found.rows, 1000, copies=found.copies.group_of(8))) == 7


def test_the_last_lines_name_the_files_the_number_and_the_next_command(looked) -> None:
    lines = last_lines(looked, 3)
    assert "broken, left out: 1" in lines
    assert "duplicates.csv" in lines[-3]
    assert lines[-2].endswith("(3 s)")
    command = f"sslgh classify {looked.folder} labels.csv --embeddings {looked.out}/embeddings.npz --out kinds"
    assert command in lines[-1]
    assert command in look_page(looked)


def test_the_sheet_is_a_picture(looked) -> None:
    with Image.open(looked.out / "sheet.png") as sheet:
        assert sheet.width > 800


@pytest.mark.parametrize("count", [1, 3])
def test_hardly_any_photos_are_looked_at_too(read, count, draw, model, tmp_path) -> None:
    for seed in range(count):
        draw(tmp_path / "few" / f"{seed}.png", seed)
    result = look_folder(tmp_path / "few", None, model, workers=0)
    assert result.out == tmp_path / "few-look"
    assert len(read(result.out / "photos.csv")) == count


def test_results_inside_the_folder_or_where_none_can_be_written_are_refused(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"lies inside .*give --out another"):
        results_folder(tmp_path / "photos", tmp_path / "photos" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written; give --out"):
        results_folder(tmp_path / "photos", tmp_path / "file")
    with pytest.raises(DataError, match="is not a folder"):
        results_folder(tmp_path / "nowhere", None)


def test_files_of_others_are_not_written_over(photos, model, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos.csv").write_text("mine")
    monkeypatch.chdir(tmp_path / "mine")
    for out in (tmp_path / "mine", Path()):
        with pytest.raises(DataError, match=r"not of sslgh look.*give --out a new or empty folder"):
            look_folder(photos, out, model, workers=0)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photos.csv"]
    (tmp_path / "empty").mkdir()
    assert results_folder(photos, tmp_path / "empty") == tmp_path / "empty"


def test_a_folder_without_photos_leaves_no_folder_of_results(model, tmp_path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError):
        look_folder(tmp_path / "none", None, model, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


def test_a_tilde_is_the_home_folder(photos, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = look_folder(Path("~/photos"), Path("~/out"), model, workers=0)
    assert (result.folder, result.out) == (photos, tmp_path / "out")


def test_a_thumbnail_is_upright_and_holds_no_metadata(tmp_path) -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, :50] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "maker"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, comment=b"secret")
    small = thumbnail(tmp_path / "x.jpg", 32)
    assert np.asarray(small)[2, 16].min() > 200
    assert np.asarray(small)[29, 16].max() < 60
    small.save(tmp_path / "small.jpg")
    with Image.open(tmp_path / "small.jpg") as again:
        assert len(again.getexif()) == 0
        assert "comment" not in again.info
    assert data_uri(small).startswith("data:image/jpeg;base64,")


def test_a_file_that_cannot_be_read_has_no_thumbnail(tmp_path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"nothing")
    assert thumbnail(tmp_path / "x.jpg", 32) is None
