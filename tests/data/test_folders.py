import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslgh.data import DataError, load_images, training_set
from sslgh.data.folders import folder_of_record, read_folder, split_folders
from sslgh.recipe.data import Data


def plant(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 10 * i, dtype=np.uint8)).save(path)
    return root


def data(root, **more):
    return Data(source="folder", root=root, **more)


def test_class_folders_are_labels_in_sorted_order(tmp_path):
    images = read_folder(
        plant(tmp_path, "dog/1.png", "cat/2.png", "dog/deep/er/0.png", "cat/1.png")
    )
    assert images.class_names == ("cat", "dog")
    assert images.names == ("cat/1.png", "cat/2.png", "dog/1.png", "dog/deep/er/0.png")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.image(0).getpixel((0, 0)) == (30, 30, 30)


@pytest.mark.parametrize(
    "names", [("b.png", "a.png"), ("only/b.png", "only/a.png"), ("x/a.png", "y/b.png", "c.png")]
)
def test_any_other_tree_is_unlabeled(tmp_path, names):
    images = read_folder(plant(tmp_path, *names))
    assert images.labels is None
    assert images.class_names == ()
    assert images.names == tuple(sorted(names))


# Images that are trained on, that are tested on, and whatever else there is.
DIVISIONS = {
    "no train/": ("a/1.png b/2.png", "", ""),
    "train/ alone": ("train/a/1.png train/b/2.png", "", ""),
    "train/ and test/": ("train/a/1.png", "test/a/2.png", ""),
    "an empty test/": ("train/a/1.png train/b/2.png", "", "test/"),
    "without an image": ("train/a/1.png", "test/a/2.png", "__MACOSX/ notes/x.txt empty/"),
    "hidden": ("train/a/1.png", "test/a/2.png", ".git/3.png .4.png"),
    "thumbnails": ("train/a/1.png", "test/a/2.png", "@eaDir/3.png train/@eaDir/1.png/4.png"),
    "masks": ("train/a/1.png", "test/a/2.png", "annotations/3.png"),
    "validation": ("train/a/1.png", "", "val/a/2.png annotations/3.png"),
    "validation and test": ("train/a/1.png", "test/a/3.png", "valid/a/2.png"),
    "loose images and splits": ("train/a/1.png", "test/a/2.png", "3.png 4.png"),
    "loose images and train/": ("train/1.png 2.png 3.png", "", ""),
    "a class called train": ("train/1.png tram/2.png", "", "test/"),
    "other names": ("Training/1.png", "TESTING/2.png", ""),
    "the plain name first": ("train/1.png", "test/2.png", "training/3.png testing/4.png"),
    "an unpacked archive": ("photos/train/1.png", "photos/test/2.png", "__MACOSX/photos/"),
    "an archive of classes": ("photos/a/1.png photos/train/2.png", "", ""),
    "loose images and an archive": ("photos/train/1.png photos/test/2.png 3.png", "", ""),
}


@pytest.mark.parametrize(("trained", "tested", "more"), DIVISIONS.values(), ids=DIVISIONS)
def test_what_is_trained_and_tested_on(tmp_path, trained, tested, more):
    for name in f"{trained} {tested} {more}".split():
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            plant(tmp_path, f"{name}.png")
            (tmp_path / f"{name}.png").rename(tmp_path / name)
    for split, names in (("train", trained), ("test", tested)):
        images = load_images(data(tmp_path), split)
        found = (
            [] if images is None else [p.relative_to(tmp_path).as_posix() for p in images.images]
        )
        assert found == sorted(names.split())


def test_what_is_left_out_is_reported_once_with_its_counts(tmp_path, caplog):
    plant(
        tmp_path,
        "train/a/1.png",
        "test/a/2.png",
        "val/a/3.png",
        "extra/4.png",
        "extra/5.png",
        "6.png",
    )
    for split in ("train", "test", "train"):
        load_images(data(tmp_path), split)
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == (
        f"{tmp_path} is divided into splits, and images that are not in train/ and test/ are left out: "
        "1 in no folder, 2 in extra/, 1 in val/"
    )


def test_a_given_test_folder_is_none_of_the_others(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "held/a/3.png")
    settings = data(tmp_path, test_root=tmp_path / "held")
    assert training_set(settings).names == ("a/1.png", "b/2.png")
    plant(tmp_path, "4.png")
    splits = split_folders(tmp_path, tmp_path / "train" / ".." / "held")
    assert (splits.folders, splits.train) == ({}, tmp_path)


def test_a_closed_test_folder_is_not_trained_on(unprivileged):
    plant(unprivileged, "train/a/1.png", "test/a/2.png", "3.png")
    (unprivileged / "test").chmod(0)
    assert training_set(data(unprivileged)).names == ("a/1.png",)
    with pytest.raises(DataError, match="test cannot be listed"):
        load_images(data(unprivileged), "test")


def test_the_names_of_a_run_are_found_when_the_tree_is_divided_otherwise(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "4.png")
    assert folder_of_record(["a/1.png"], tmp_path, None) == tmp_path / "train"
    assert folder_of_record(["train/a/1.png", "4.png"], tmp_path, None) == tmp_path
    assert folder_of_record(["gone.png"], tmp_path, None) == tmp_path / "train"
    (tmp_path / "test").rename(tmp_path / "more")
    assert split_folders(tmp_path).train == tmp_path
    assert folder_of_record(["a/1.png"], tmp_path, None) == tmp_path / "train"


def test_folders_without_an_image_are_no_classes(tmp_path):
    plant(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").mkdir()
    assert read_folder(tmp_path).class_names == ("a", "b")


def test_extensions_are_known_in_any_case_and_other_files_are_ignored(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.ppm", "i.gif"]
    plant(tmp_path, *names)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "jpg").write_text("x")
    images = read_folder(tmp_path)
    assert images.names == tuple(sorted(names))
    assert all(images.image(i).size == (6, 4) for i in range(len(names)))


def test_hidden_files_and_folders_are_skipped(tmp_path):
    plant(tmp_path, "a.png", ".b.png", ".hidden/c.png", "d/._e.png")
    assert read_folder(tmp_path).names == ("a.png",)


def test_links_are_followed_and_loops_end(tmp_path):
    root = plant(tmp_path / "root", "a/1.png", "b/2.png")
    plant(tmp_path / "elsewhere", "3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "across").symlink_to(root / "a")
    (root / "itself").symlink_to(root / "itself")
    assert read_folder(root).names == ("a/1.png", "b/2.png", "c/3.png")


def test_what_cannot_be_read_stays_in_the_list_and_is_named_on_reading(tmp_path):
    plant(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").symlink_to("c.png")
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "e").symlink_to(tmp_path / "gone")
    images = read_folder(tmp_path)
    assert images.names == ("a.png", "b.png", "c.png", "d.png")
    for i, name in ((1, "b"), (2, "c"), (3, "d")):
        with pytest.raises(DataError, match=rf"{name}\.png cannot be read as an image"):
            images.image(i)
    assert len(images.fingerprint) == 32


def test_a_folder_of_which_nothing_exists_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).symlink_to(tmp_path / "unmounted" / name)
    with pytest.raises(
        DataError, match=r"holds 2 images of which none .*first .*a\.png\); restore"
    ):
        read_folder(tmp_path)


def test_a_folder_with_the_name_of_an_image_is_a_folder(tmp_path):
    assert read_folder(plant(tmp_path, "a.png/1.png", "b.png/2.png")).class_names == (
        "a.png",
        "b.png",
    )


def test_names_may_hold_line_ends_and_bytes_that_are_no_text(tmp_path):
    names = ["a\nb/1.png", "köter\u202e/2.png", os.fsdecode(b"\xff\xfe/3.png"), "\x1b[2J/4.png"]
    images = read_folder(plant(tmp_path, *names))
    assert set(images.names) == set(names)
    assert len(images.class_names) == 4
    assert all(images.image(i).size == (6, 4) for i in range(4))
    assert images.fingerprint == read_folder(tmp_path).fingerprint
    test = plant(tmp_path / "test", "a\nb/1.png", "\x1b[3J/1.png")
    with pytest.raises(DataError) as caught:
        read_folder(test, classes=images.class_names)
    assert str(caught.value).isprintable()


def test_a_file_without_permission_stays_and_is_named_on_reading(unprivileged):
    images = read_folder(plant(unprivileged, "a.png", "b.png"))
    (unprivileged / "b.png").chmod(0)
    assert read_folder(unprivileged).names == images.names
    with pytest.raises(DataError, match=r"b\.png .*\(Permission denied\)"):
        images.image(1)
    (unprivileged / "a.png").chmod(0)
    with pytest.raises(DataError, match="of which none can be opened"):
        read_folder(unprivileged)


@pytest.mark.parametrize("mode", [0, 0o400, 0o100])
@pytest.mark.parametrize("closed", ["", "a", "a/deep"])
def test_a_folder_without_permission_is_an_error_with_its_name(unprivileged, mode, closed):
    plant(unprivileged, "a/deep/er/1.png", "b/2.png")
    (unprivileged / closed).chmod(mode)
    with pytest.raises(DataError, match=r"(cannot be listed .*; allow reading it|is not a folder)"):
        training_set(data(unprivileged))


def test_a_link_into_a_closed_folder_is_no_folder_that_is_missed(unprivileged):
    plant(unprivileged, "closed/class/1.png", "open/b/2.png")
    (unprivileged / "open" / "a").symlink_to(unprivileged / "closed" / "class")
    (unprivileged / "closed").chmod(0)
    with pytest.raises(DataError, match="open/a cannot be listed"):
        read_folder(unprivileged / "open")
    with pytest.raises(DataError, match="open/a cannot be listed"):
        training_set(data(unprivileged / "open"))
    with pytest.raises(DataError, match="is not a folder"):
        training_set(data(unprivileged / "closed" / "class"))


def test_the_test_set_may_lack_a_class(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png")
    test = load_images(data(tmp_path), "test")
    assert test.class_counts.tolist() == [0, 0, 1]


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no image; .*\.jpeg"):
        training_set(data(tmp_path))


def test_a_missing_root_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"data\.root .*gone is not a folder"):
        training_set(data(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"data\.test_root .*gone is not a folder"):
        training_set(data(plant(tmp_path, "a.png"), test_root=tmp_path / "gone"))


def test_a_folder_that_must_not_be_listed_is_named(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.png")
    scandir = os.scandir

    def guarded(folder):
        if folder == tmp_path / "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match="a cannot be listed"):
        read_folder(tmp_path)


def test_train_and_test_folders_are_splits(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "test/b/3.png")
    assert training_set(data(tmp_path)).names == ("a/1.png", "b/2.png")
    test = load_images(data(tmp_path), "test")
    assert test.names == ("b/3.png",)
    assert test.class_names == ("a", "b")
    assert test.labels.tolist() == [1]


def test_a_class_called_train_does_not_hide_the_others(tmp_path):
    plant(tmp_path, "train/1.png", "tram/2.png")
    assert training_set(data(tmp_path)).class_names == ("train", "tram")
    assert load_images(data(tmp_path), "test") is None


def test_a_tree_with_train_and_val_has_no_test_set(tmp_path):
    plant(tmp_path, "train/1.png", "val/2.png")
    assert training_set(data(tmp_path)).names == ("1.png",)
    assert load_images(data(tmp_path), "test") is None


def test_a_given_test_root_goes_before_the_own_test_folder(tmp_path):
    root = plant(tmp_path / "root", "train/a/1.png", "train/b/1.png", "test/a/1.png")
    other = plant(tmp_path / "other", "b/9.png")
    assert load_images(data(root, test_root=other), "test").names == ("b/9.png",)


def test_test_images_inside_the_root_are_not_trained_on(tmp_path):
    plant(tmp_path, "a/1.png", "b/2.png", "held/a/3.png")
    settings = data(tmp_path, test_root=tmp_path / "held")
    assert training_set(settings).names == ("a/1.png", "b/2.png")
    assert training_set(settings).class_names == ("a", "b")
    assert load_images(settings, "test").labels.tolist() == [0]
    with pytest.raises(DataError, match=r"is data\.root"):
        training_set(data(tmp_path, test_root=tmp_path))


def test_a_class_that_the_training_set_lacks_is_named(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png")
    with pytest.raises(DataError, match=r"no training image \(1 in all; first 'c', which has no f"):
        load_images(data(tmp_path), "test")
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(
        DataError, match=r"first 'c', whose folder holds no image in .*train\); put"
    ):
        load_images(data(tmp_path), "test")


def test_a_flat_test_folder_does_not_fit_a_labeled_training_set(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    with pytest.raises(DataError, match="outside class folders"):
        load_images(data(tmp_path), "test")


def test_an_unlabeled_training_set_may_have_a_labeled_test_set(tmp_path):
    plant(tmp_path, "train/1.png", "test/a/1.png", "test/b/1.png")
    assert training_set(data(tmp_path)).labels is None
    assert load_images(data(tmp_path), "test").class_names == ("a", "b")


def test_long_tail_without_labels_is_an_error(tmp_path):
    plant(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"has no labels; leave data\.long_tail out"):
        training_set(data(tmp_path, long_tail={}))


def test_the_order_does_not_depend_on_the_file_system(tmp_path):
    names = [f"{c}/{i}.png" for c in "cab" for i in (2, 0, 1)] + ["a-b/0.png"]
    first = read_folder(plant(tmp_path / "one", *names))
    second = read_folder(plant(tmp_path / "two", *reversed(names)))
    assert first.names == second.names
    assert Path(first.names[3]).parts[0] == "a-b"


def test_photos_of_formats_that_are_not_read_and_strays_are_reported_once(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("sslgh.data.tree.reads_heic", lambda: False)
    for name in (
        "cats/1.jpg",
        "cats/2.jpg",
        "dogs/3.jpg",
        "dogs/4.HEIC",
        "dogs/5.heic",
        "6.jpg",
        "notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for _ in range(2):
        assert read_folder(tmp_path).labels is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].endswith(
        ": skipped 2 .heic (photos that are not read: pip install '.[heic]', or convert them to JPEG or PNG), 1 .txt"
    )
    assert "1 of the images in" in messages[1]
    assert "the first is 6.jpg: none has a label" in messages[1]
