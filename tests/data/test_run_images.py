import json
import os
import shutil
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from sslgh.data import DataError, ImageSet, SampleKey, training_set
from sslgh.data.image_set import load_or_replace
from sslgh.data.run_images import check_files, other_images, probe_images, run_images
from sslgh.data.run_record import SAMPLE, image_fingerprint, record_text, sample_hashes
from sslgh.recipe import make_recipe
from sslgh.recipe.run_recipe import run_text

FILES = ["cat/1.png", "cat/2.png", "cat/3.png", "cat/4.png", "dog/1.png", "dog/2.png", "dog/3.png"]


def plant(root, *names, side=4):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        color = (side, *divmod(crc32(name.encode()) % 65536, 256))
        Image.new("RGB", (side, side), color).save(root / name)
    return root


@pytest.fixture
def recipe(tmp_path):
    """``recipe(source="list")``: with the run directory made."""
    (tmp_path / "run").mkdir()

    def make(**data):
        data = {"source": "folder", "root": str(tmp_path / "data")} | data
        if data["source"] == "folder":
            data = {"labels": "folders"} | data
        settings = {"name": "r", "data": data, "method": {"name": "simclr"}}
        return make_recipe(settings | {"run_dir": str(tmp_path / "run")})

    return make


@pytest.fixture
def root(tmp_path):
    return plant(tmp_path / "data", *FILES)


def begun(settings):
    """The images of a run that begins."""
    images = run_images(settings)
    (settings.directory / "images.json").write_text(record_text(images))
    (settings.directory / "recipe.yaml").write_text(run_text(settings))
    return images


def classes(images):
    return [images.class_names[label] for label in images.labels]


def test_a_run_begins_with_the_training_set(recipe, root):
    images, expected = begun(recipe()), training_set(recipe().data)
    assert images.images == expected.images
    assert images.names == tuple(FILES)
    assert classes(images) == ["cat"] * 4 + ["dog"] * 3


def test_an_unchanged_folder_gives_the_same_set(recipe, root):
    first = begun(recipe())
    again = run_images(recipe())
    assert again.images == first.images
    assert (again.names, again.class_names) == (first.names, first.class_names)
    assert np.array_equal(again.labels, first.labels)


def test_missing_files_keep_their_positions_and_are_found_when_they_are_read(recipe, root):
    first = begun(recipe())
    (root / "cat/2.png").unlink()
    (root / "dog/1.png").unlink()
    again = run_images(recipe())
    assert again.images == first.images
    assert image_fingerprint(again) == image_fingerprint(first)
    with pytest.raises(DataError, match=r"cat/2\.png"):
        again.image(1)


def test_new_files_are_left_out(recipe, root):
    first = begun(recipe())
    plant(root, "cat/0.png", "dog/9.png")
    assert run_images(recipe()).images == first.images


def test_a_new_class_folder_shifts_no_label(recipe, root):
    first = begun(recipe())
    plant(root, "ant/1.png", "cow/1.png")
    again = run_images(recipe())
    assert again.class_names == ("cat", "dog")
    assert classes(again) == classes(first)


def test_an_image_outside_the_class_folders_takes_no_label_away(recipe, root):
    first = begun(recipe())
    plant(root, "stray.png")
    assert classes(run_images(recipe())) == classes(first)


def test_a_class_that_has_gone_shifts_no_label(recipe, root):
    begun(recipe())
    shutil.rmtree(root / "dog")
    plant(root, "eel/1.png")
    again = run_images(recipe())
    assert classes(again) == ["cat"] * 4 + ["dog"] * 3


def test_a_root_without_any_of_the_images_stops_at_the_first_sample(recipe, root):
    begun(recipe())
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")
    plant(root, "other/1.png")
    images = run_images(recipe())
    with pytest.raises(DataError, match=r"so the images under data\.root are gone or broken"):
        load_or_replace(images, SampleKey(0, 0, 3), seed=0)


@pytest.mark.parametrize("name", ["../secret.png", "cat/../../secret.png", "/secret.png"])
def test_a_record_leads_to_no_file_outside_the_folder(recipe, root, name):
    images = begun(recipe())
    names = (name, *images.names[1:])
    forged = ImageSet(images.images, images.labels, images.class_names, names)
    (recipe().directory / "images.json").write_text(record_text(forged))
    with pytest.raises(
        DataError, match=r"images\.json names .*secret\.png, which lies outside data\.root"
    ):
        run_images(recipe())


def test_a_root_that_has_moved_keeps_the_names(recipe, root, tmp_path):
    first = begun(recipe())
    shutil.move(root, tmp_path / "moved")
    again = run_images(recipe(root=str(tmp_path / "moved")))
    assert again.names == first.names
    assert again.images[0] == tmp_path / "moved" / "cat/1.png"


def test_the_root_of_a_divided_tree_is_its_training_part(recipe, tmp_path):
    plant(tmp_path / "data", *(f"train/{name}" for name in FILES), "test/cat/1.png")
    first = begun(recipe())
    (tmp_path / "data/train/cat/1.png").unlink()
    assert run_images(recipe()).images == first.images


def test_a_source_that_cannot_be_listed_is_an_error(recipe, root):
    begun(recipe())
    shutil.rmtree(root)
    with pytest.raises(DataError, match="is not a folder"):
        run_images(recipe())


@pytest.mark.parametrize(
    "gone", [["cat/1.png", "cat/3.png"], ["dog/1.png", "dog/2.png"], ["cat/2.png"]]
)
def test_a_long_tail_is_not_cut_again(recipe, root, gone):
    cut = {"long_tail": {"imbalance": 2, "max_per_class": 4, "seed": 1}}
    first = begun(recipe(**cut))
    for name in gone:
        (root / name).unlink()
    plant(root, "cat/0.png")
    again = run_images(recipe(**cut))
    assert again.names == first.names
    assert classes(again) == classes(first)


def test_a_subset_is_known_by_name(recipe, root, tmp_path):
    (tmp_path / "rows").write_text("5\n2\n")
    settings = recipe(subset=str(tmp_path / "rows"))
    assert begun(settings).names == ("dog/2.png", "cat/3.png")
    plant(root, "cat/0.png")
    again = run_images(settings)
    assert again.names == ("dog/2.png", "cat/3.png")
    assert classes(again) == ["dog", "cat"]


def listed(recipe, tmp_path, *lines):
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return recipe(source="list", list=str(tmp_path / "list.txt"))


def test_a_list_in_another_order_keeps_the_positions(recipe, root, tmp_path):
    first = begun(listed(recipe, tmp_path, "cat/1.png 0", "dog/1.png 2", "cat/2.png 0"))
    lines = ["dog/2.png 3", "cat/2.png 0", "dog/1.png 2", "cat/1.png 0"]
    again = run_images(listed(recipe, tmp_path, *lines))
    assert again.images == first.images
    assert classes(again) == ["0", "2", "0"]


def test_a_label_that_differs_is_refused(recipe, root, tmp_path):
    begun(listed(recipe, tmp_path, "cat/1.png 0", "dog/1.png 1"))
    with pytest.raises(DataError, match=r"^dog/1\.png was of class 1 when the run began"):
        run_images(listed(recipe, tmp_path, "cat/1.png 0", "dog/1.png 0"))


def test_a_list_may_name_a_file_twice(recipe, root, tmp_path):
    settings = listed(recipe, tmp_path, "cat/1.png 0", "dog/1.png 1", "cat/1.png 1")
    first = begun(settings)
    again = run_images(settings)
    assert again.images == first.images
    assert np.array_equal(again.labels, first.labels)


def save(tmp_path, seed):
    (tmp_path / "data").mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "data" / "train.npz", images=pixels, labels=np.arange(6) % 2)


def test_arrays_that_have_changed_are_refused(recipe, tmp_path):
    save(tmp_path, 0)
    first = begun(recipe(source="arrays"))
    again = run_images(recipe(source="arrays"))
    assert np.array_equal(again.images, first.images)
    save(tmp_path, 1)
    with pytest.raises(DataError, match="have changed since the run began; restore them or choose"):
        run_images(recipe(source="arrays"))


def test_any_name_is_kept(recipe, tmp_path):
    names = [os.fsdecode(b"\xff\xfe.png"), "two\nlines.png", "\u00e4.png"]
    for name in names:
        plant(tmp_path / "data", "x.png")
        (tmp_path / "data" / "x.png").rename(tmp_path / "data" / name)
    first = begun(recipe(labels="auto"))
    assert set(first.names) == set(names)
    (tmp_path / "data" / names[0]).unlink()
    assert run_images(recipe(labels="auto")).images == first.images


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: text.replace("dog/2.png", "dog/7.png"),
        lambda text: text.replace('"labels":[0,', '"labels":[1,'),
        lambda text: "[]",
    ],
)
def test_a_damaged_record_is_refused(recipe, root, damage):
    begun(recipe())
    record = recipe().directory / "images.json"
    record.write_text(damage(record.read_text()))
    with pytest.raises(DataError, match=r"images\.json is damaged"):
        run_images(recipe())


def test_a_record_of_another_format_is_refused(recipe, root):
    begun(recipe())
    record = recipe().directory / "images.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 9}))
    with pytest.raises(DataError, match="has format 9, this sslgh reads 3"):
        run_images(recipe())


@pytest.mark.parametrize("older", [{"format": 1, "sizes": [70] * len(FILES)}, {"format": 2}])
def test_a_record_of_an_older_format_is_read(recipe, root, older):
    first = begun(recipe())
    record = recipe().directory / "images.json"
    content = json.loads(record.read_text())
    del content["content"]
    record.write_text(json.dumps(content | older))
    plant(root, "cat/0.png")
    assert run_images(recipe()).images == first.images


def test_a_record_takes_about_40_bytes_per_image(recipe, tmp_path):
    names = [f"n{i // 100:08}/n{i // 100:08}_{i % 100:05}.JPEG" for i in range(2000)]
    paths = tuple(tmp_path / name for name in names)
    labels = np.arange(2000) // 2
    text = record_text(ImageSet(paths, labels, tuple(map(str, range(1000))), tuple(names)))
    assert len(text.encode()) < 45 * 2000


def test_the_fingerprint_is_of_names_classes_and_labels_and_not_of_files(root):
    def fingerprint(names=("a", "b"), labels=(0, 1), classes=("x", "y")):
        paths = tuple(root / name for name in names)
        return image_fingerprint(ImageSet(paths, np.array(labels), tuple(classes), tuple(names)))

    unlabeled = image_fingerprint(ImageSet((root / "a", root / "b"), None, (), ("a", "b")))
    others = [
        fingerprint(),
        unlabeled,
        fingerprint(names=("b", "a")),
        fingerprint(names=("ab", "")),
        fingerprint(labels=(1, 0)),
        fingerprint(classes=("x", "z")),
        fingerprint(classes=("xy", "")),
    ]
    assert len(set(others)) == len(others)
    assert fingerprint() == others[0]


def test_a_run_most_of_whose_files_are_gone_is_refused_and_one_that_misses_few_is_not(
    tmp_path,
) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(2500))
    for path in paths[:1500]:
        path.touch()
    images = ImageSet(paths, None, (), tuple(path.name for path in paths))
    check_files(images, tmp_path)
    for path in paths[:500]:
        path.unlink()
    with pytest.raises(DataError, match=r"75[0-9] of 125[0-9] images .* looked for are missing"):
        check_files(images, tmp_path)


def others(settings):
    """Why the data are not the run's images, or None."""
    return other_images(settings.directory, settings.data)


def test_images_that_have_moved_are_known_by_name_and_content(recipe, root, tmp_path, caplog):
    first = begun(recipe())
    shutil.move(root, tmp_path / "moved")
    plant(tmp_path / "moved", "cat/0.png", "ant/1.png")  # after the start, as at the old place
    (tmp_path / "moved" / "cat/2.png").unlink()
    settings = recipe(root=str(tmp_path / "moved"))
    assert others(settings) is None
    assert run_images(settings).names == first.names
    found = f"the 7 images that the run began with were found at data.root {tmp_path / 'moved'}"
    assert caplog.text.count(found) == 1


def test_other_pictures_of_the_same_names_are_other_images(recipe, root, tmp_path):
    begun(recipe())
    plant(tmp_path / "other", *FILES, side=5)
    settings = recipe(root=str(tmp_path / "other"))
    assert others(settings).endswith("holds other images: cat/1.png is another file there")
    assert run_images(settings).images[0] == tmp_path / "other" / "cat/1.png"


def test_a_place_without_most_of_the_images_is_another(recipe, root, tmp_path):
    begun(recipe())
    plant(tmp_path / "other", *FILES[:3], "eel/1.png")
    reason = others(recipe(root=str(tmp_path / "other")))
    assert "4 of 7 images of the run that were looked for are missing there" in reason
    assert reason.endswith("the first is cat/4.png")
    plant(tmp_path / "other", FILES[3])
    assert others(recipe(root=str(tmp_path / "other"))) is None


@pytest.mark.parametrize(
    "change", [{"long_tail": {"imbalance": 2}}, {"subset": "rows"}, {"source": "digits"}]
)
def test_another_choice_of_images_is_named(recipe, root, change):
    begun(recipe())
    (key,) = change
    assert others(recipe(**change)).startswith(f"data.{key} is ")


def test_images_of_an_older_record_are_known_by_their_names(recipe, root, tmp_path):
    begun(recipe())
    record = recipe().directory / "images.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"format": 2, "content": []}))
    plant(tmp_path / "other", *FILES, side=5)
    assert others(recipe(root=str(tmp_path / "other"))) is None


def test_a_list_that_has_moved_names_the_same_images_and_labels(recipe, root, tmp_path):
    lines = ["cat/1.png 0", "dog/1.png 1", "cat/2.png 0"]
    settings = listed(recipe, tmp_path, *lines)
    begun(settings)
    shutil.copy(settings.data.list, tmp_path / "copy.txt")
    assert others(recipe(source="list", list=str(tmp_path / "copy.txt"))) is None
    for text in (lines[:2], [*lines, "dog/2.png 1"], ["cat/1.png 1", *lines[1:]]):
        (tmp_path / "other.txt").write_text("\n".join(text))
        reason = others(recipe(source="list", list=str(tmp_path / "other.txt")))
        assert reason == f"data.list {tmp_path}/other.txt names other images, or other labels"


def test_arrays_that_have_moved_are_known_by_their_pixels(recipe, tmp_path):
    save(tmp_path, 0)
    begun(recipe(source="arrays"))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert others(recipe(source="arrays", root=str(tmp_path / "moved"))) is None
    save(tmp_path, 1)
    (tmp_path / "data").rename(tmp_path / "other")
    reason = others(recipe(source="arrays", root=str(tmp_path / "other")))
    assert reason == f"data.root {tmp_path}/other holds other images"


def test_a_test_folder_among_the_images_of_the_run_is_refused(recipe, tmp_path):
    plant(tmp_path / "data", *FILES, *(f"held/{name}" for name in FILES[:2]))
    settings = recipe()
    begun(settings)
    late = recipe(test_root=str(tmp_path / "data" / "held"))
    with pytest.raises(DataError, match=r"held holds 2 images that the run was trained on"):
        probe_images(late.directory, late.data, training_set(late.data))
    shutil.copytree(tmp_path / "data", tmp_path / "apart")
    late = recipe(test_root=str(tmp_path / "apart"))
    assert len(probe_images(late.directory, late.data, training_set(settings.data))[0]) == 9


def test_the_sample_of_a_large_set_is_spread_over_it(tmp_path):
    paths = [tmp_path / str(number) for number in range(3 * SAMPLE)]
    for number in (0, 3, 3 * SAMPLE - 3):
        paths[number].write_text(str(number))
    found = sample_hashes(paths)
    known = [position for position, text in enumerate(found) if text.strip("0")]
    assert (len(found), known) == (SAMPLE, [0, 1, SAMPLE - 1])


def test_the_classes_of_images_in_memory_are_kept(recipe):
    settings = recipe(source="digits")
    begun(settings)
    record = json.loads((settings.directory / "images.json").read_text())
    assert record["class_names"] == [str(digit) for digit in range(10)]
    assert (record["names"], record["labels"]) == ([], None)
