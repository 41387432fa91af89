import numpy as np
import pytest
from PIL import Image

from sslgh.data import DataError, load_images, training_set
from sslgh.data.run_images import probe_images, renumbered, trained_images
from sslgh.data.run_record import record_text
from sslgh.recipe import make_recipe, recipe_text

COUNTS = {"ape": 8, "cat": 6, "dog": 4}
CUT = {"long_tail": {"imbalance": 2, "max_per_class": 4, "seed": 1}}


def plant(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (1, 2, 3)).save(root / name)
    return root


@pytest.fixture
def root(tmp_path):
    """18 images of three classes."""
    names = [f"{name}/{i}.png" for name, count in COUNTS.items() for i in range(count)]
    return plant(tmp_path / "data", *names)


@pytest.fixture
def data(tmp_path, root):
    """``data(subset=...)``: the data section of a recipe on ``root``."""

    def make(**settings):
        return recipe(tmp_path, **settings).data

    return make


def recipe(tmp_path, **data):
    data = {"source": "folder", "root": str(tmp_path / "data")} | data
    settings = {"name": "r", "data": data, "method": {"name": "simclr"}}
    return make_recipe(settings | {"run_dir": str(tmp_path / "run")})


def begun(tmp_path, **settings):
    """The images of a run that begins: recipe and record are in its directory."""
    run = recipe(tmp_path, **settings)
    images = training_set(run.data)
    run.directory.mkdir()
    (run.directory / "recipe.yaml").write_text(recipe_text(run))
    (run.directory / "images.json").write_text(record_text(images))
    return images


def probed(tmp_path, data):
    return probe_images(tmp_path / "run", data, load_images(data, "train"))


def classes(images):
    return [images.class_names[label] for label in images.labels]


def listed(tmp_path, *lines):
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return {"source": "list", "list": str(tmp_path / "list.txt")}


def test_before_the_run_they_are_the_training_set(tmp_path, data):
    (tmp_path / "rows").write_text("5\n2\n")
    for settings in ({}, CUT, {"subset": str(tmp_path / "rows")}):
        asked = data(**settings)
        expected = training_set(asked)
        for directory in (None, tmp_path / "run"):
            images, counts = probe_images(directory, asked, load_images(asked, "train"))
            assert images.names == expected.names
            assert counts.tolist() == expected.class_counts.tolist()


@pytest.mark.parametrize("settings", [{}, CUT])
def test_an_unchanged_folder_gives_the_images_of_the_run_in_their_order(tmp_path, data, settings):
    first = begun(tmp_path, **settings)
    for images, counts in (
        probed(tmp_path, data(**settings)),
        trained_images(tmp_path / "run", data(**settings)),
    ):
        assert images.fingerprint == first.fingerprint
        assert counts.tolist() == first.class_counts.tolist()


def test_a_long_tail_is_not_cut_again(tmp_path, root, data):
    first = begun(tmp_path, **CUT)
    plant(root, "ape/00.png", "bee/0.png", "bee/1.png", "bee/2.png", "dog/00.png")
    images, counts = probed(tmp_path, data(**CUT))
    assert images.names == first.names
    assert classes(images) == classes(first)
    assert images.class_names == ("ape", "bee", "cat", "dog")
    assert counts.tolist() == [4, 0, 2, 2]
    images, counts = trained_images(tmp_path / "run", data(**CUT))
    assert images.names == first.names
    assert images.labels.tolist() == first.labels.tolist()
    assert counts.tolist() == [4, 2, 2]


def test_new_files_are_left_out(tmp_path, root, data, caplog):
    first = begun(tmp_path)
    plant(root, "ape/00.png", "bee/0.png")
    for images, counts in (
        probed(tmp_path, data()),
        trained_images(tmp_path / "run", data()),
    ):
        assert images.names == first.names
        assert sorted(counts.tolist(), reverse=True)[:3] == [8, 6, 4]
    assert caplog.messages == []


def test_missing_files_are_left_out_with_a_warning_and_still_count(tmp_path, root, data, caplog):
    first = begun(tmp_path)
    gone = ("ape/3.png", "dog/0.png", "dog/1.png")
    for name in gone:
        (root / name).unlink()
    for images, counts in (
        probed(tmp_path, data()),
        trained_images(tmp_path / "run", data()),
    ):
        assert images.names == tuple(name for name in first.names if name not in gone)
        assert images.class_counts.tolist() == [7, 6, 2]
        assert counts.tolist() == [8, 6, 4]
    text = f"3 of 18 images of the run are missing from data.root {root}, the first is ape/3.png; "
    assert caplog.messages == [f"{text}its evaluation leaves them out"] * 2


def test_a_class_that_has_gone_keeps_its_row_in_the_classifier(tmp_path, root, data):
    begun(tmp_path)
    for i in range(COUNTS["cat"]):
        (root / f"cat/{i}.png").unlink()
    assert trained_images(tmp_path / "run", data())[1].tolist() == [8, 6, 4]
    images, counts = probed(tmp_path, data())
    assert images.class_names == ("ape", "dog")
    assert counts.tolist() == [8, 4]


def test_more_than_half_missing_is_refused(tmp_path, root, data):
    begun(tmp_path)
    for name in [f"ape/{i}.png" for i in range(8)] + ["cat/0.png", "cat/1.png"]:
        (root / name).unlink()
    for look in (
        lambda: probed(tmp_path, data()),
        lambda: trained_images(tmp_path / "run", data()),
    ):
        with pytest.raises(DataError, match=r"^10 of 18 images of the run are missing"):
            look()


def test_an_image_outside_the_class_folders_takes_no_label_from_the_classifier(
    tmp_path, root, data
):
    first = begun(tmp_path)
    plant(root, "stray.png")
    assert classes(trained_images(tmp_path / "run", data())[0]) == classes(first)


def test_other_data_are_cut_by_their_own_rules(tmp_path, data):
    begun(tmp_path, **CUT)
    other = data(long_tail={"imbalance": 3, "max_per_class": 3})
    images, counts = probed(tmp_path, other)
    assert images.names == training_set(other).names
    assert counts.tolist() == [3, 1, 1]


def test_settings_that_choose_no_images_keep_those_of_the_run(tmp_path, root, data):
    first = begun(tmp_path, **CUT)
    plant(root, "ape/00.png", "dog/00.png")
    asked = data(**CUT, size=8, workers=0, augment={"flip": 0}, broken_share=0.5)
    assert probed(tmp_path, asked)[0].names == first.names


def test_other_data_have_the_rows_of_the_classifier(tmp_path, root, data):
    begun(tmp_path)
    plant(tmp_path / "other", "cat/0.png", "dog/0.png", "dog/1.png")
    images, counts = trained_images(tmp_path / "run", data(root=str(tmp_path / "other")))
    assert images.labels.tolist() == [1, 2, 2]
    assert counts.tolist() == [8, 6, 4]
    plant(tmp_path / "other", "eel/0.png")
    with pytest.raises(DataError, match="class 'eel' of the training images is none of the 3"):
        trained_images(tmp_path / "run", data(root=str(tmp_path / "other")))


def test_a_subset_is_known_by_name_when_its_file_has_gone(tmp_path, root, data):
    rows = tmp_path / "rows"
    rows.write_text("9\n2\n")
    begun(tmp_path, subset=str(rows))
    rows.unlink()
    plant(root, "ape/00.png")
    assert probed(tmp_path, data(subset=str(rows)))[0].names == ("cat/1.png", "ape/2.png")


def test_a_file_that_a_list_names_twice_keeps_both_classes(tmp_path, data):
    lines = ["ape/0.png 0", "ape/0.png 1", "ape/1.png 0", "ape/1.png 1"]
    settings = listed(tmp_path, *lines)
    first = begun(tmp_path, **settings)
    images, _ = probed(tmp_path, data(**settings))
    assert images.names == first.names
    assert images.labels.tolist() == [0, 1, 0, 1]
    listed(tmp_path, "ape/0.png 1", "ape/0.png 0", "ape/1.png 1")
    images, counts = probed(tmp_path, data(**settings))
    assert images.names == first.names  # a line that is missing from the list is in the record
    assert images.labels.tolist() == [0, 1, 0, 1]
    assert counts.tolist() == [2, 2]


def test_a_list_with_other_labels_serves_the_probe_and_not_the_classifier(tmp_path, data):
    settings = listed(tmp_path, "ape/0.png 0", "ape/1.png 1")
    begun(tmp_path, **settings)
    listed(tmp_path, "ape/0.png 0", "ape/1.png 0", "ape/2.png 1")
    images, counts = probed(tmp_path, data(**settings))
    assert (images.labels.tolist(), counts.tolist()) == ([0, 0], [2, 0])
    with pytest.raises(DataError, match=r"^ape/1\.png was of class 1"):
        trained_images(tmp_path / "run", data(**settings))


def test_images_in_memory_that_have_changed_are_refused(tmp_path, data):
    def save(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
        np.savez(tmp_path / "data" / "train.npz", images=pixels, labels=np.arange(6) % 2)

    save(0)
    first, asked = begun(tmp_path, source="arrays"), data(source="arrays")
    assert probed(tmp_path, asked)[0].fingerprint == first.fingerprint
    assert trained_images(tmp_path / "run", asked)[1].tolist() == [3, 3]
    save(1)
    for look in (
        lambda: probed(tmp_path, asked),
        lambda: trained_images(tmp_path / "run", asked),
    ):
        with pytest.raises(DataError, match="have changed since the run began; restore them"):
            look()


def test_classes_are_renumbered_by_name_and_a_strange_one_is_named(data):
    images = training_set(data())
    same = renumbered(images, ("dog", "eel", "cat", "ape"), of="test images")
    assert classes(same) == classes(images)
    assert same.class_counts.tolist() == [4, 0, 6, 8]
    with pytest.raises(DataError, match=r"class 'cat' of the test images is none of the 2 classes"):
        renumbered(images, ("dog", "ape"), of="test images")
