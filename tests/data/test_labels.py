"""Whether the folders of a tree are classes: `data.labels`."""

import pytest
from PIL import Image

from sslgh.data import DataError, load_images
from sslgh.data.run_images import run_images
from sslgh.data.run_record import record_text
from sslgh.data.sources import describe_images
from sslgh.recipe import RecipeError, make_recipe
from sslgh.recipe.run_recipe import run_text

CAMERA, FLAT = ("2023/1.png", "2024/2.png"), ("1.png", "2.png")
SPLIT = ("train/a/1.png", "train/b/2.png", "test/a/3.png")
PROBE = {"probe": [{"protocol": "knn"}]}
FINETUNE = {"finetune": {"objective": "ce"}, "method": None}


@pytest.fixture
def recipe(tmp_path):
    """``recipe(files, labels=..., probe=...)``: of a folder that holds them."""

    def make(files, data=(), **more):
        for name in files:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "data" / name)
        data = {"source": "folder", "root": str(tmp_path / "data")} | dict(data)
        settings = {"name": "r", "run_dir": str(tmp_path / "run"), "data": data}
        return make_recipe(settings | {"method": {"name": "simclr"}} | more)

    return make


@pytest.mark.parametrize(
    ("files", "labels", "more", "classes"),
    [
        (CAMERA, "auto", {}, 0),
        (CAMERA, "auto", PROBE, 2),
        (CAMERA, "auto", FINETUNE, 2),
        (CAMERA, "folders", {}, 2),
        (CAMERA, "none", {}, 0),
        (SPLIT, "auto", {}, 2),
        (SPLIT, "none", {}, 0),
        (FLAT, "auto", {}, 0),
        (FLAT, "auto", PROBE, 0),
    ],
)
def test_folders_are_classes_where_labels_are_asked_for(recipe, files, labels, more, classes):
    run = recipe(files, {"labels": labels}, **more)
    images = run_images(run)
    assert len(images) == 2
    assert len(images.class_names) == classes
    assert (images.labels is None) == (classes == 0)
    words = describe_images(images, run.data)
    found = f"folders ({classes} classes)" if classes else "none"
    assert words.startswith(f"2 images, labels: {found}")
    assert ("data.labels=folders" in words) == (labels == "auto" and classes == 0)


def test_a_long_tail_and_a_test_folder_elsewhere_ask_for_labels(recipe, tmp_path):
    tail = {"profile": "natural", "max_per_class": 1}
    assert run_images(recipe(CAMERA, {"long_tail": tail})).labels is not None
    (tmp_path / "more").mkdir()
    assert run_images(recipe(CAMERA, {"test_root": str(tmp_path / "more")})).labels is not None


def test_a_run_keeps_the_labels_that_it_began_with(recipe):
    for before, now, kept in (("folders", "auto", True), ("auto", "folders", False)):
        run = recipe(CAMERA, {"labels": before})
        run.directory.mkdir(exist_ok=True)
        (run.directory / "images.json").unlink(missing_ok=True)
        (run.directory / "images.json").write_text(record_text(run_images(run)))
        (run.directory / "recipe.yaml").write_text(run_text(run))
        assert (run_images(recipe(CAMERA, {"labels": now})).labels is not None) == kept


def test_evaluation_takes_folders_as_classes(recipe):
    data = recipe((*CAMERA, "2024/3.png")).data
    assert load_images(data, "train").class_counts.tolist() == [1, 2]


def test_folders_that_are_asked_for_and_absent_are_refused(recipe):
    with pytest.raises(DataError, match=r"data\.labels is folders, but not every image of "):
        run_images(recipe(FLAT, {"labels": "folders"}))


@pytest.mark.parametrize(
    ("data", "more", "sentence"),
    [
        ({"labels": "none"}, PROBE, "probe: needs labels, and data.labels is none"),
        ({"labels": "none"}, FINETUNE, "finetune: needs labels, and data.labels is none"),
        ({"labels": "none", "long_tail": {}}, {}, "long_tail cuts by label, and labels is none"),
        ({"labels": "folders", "source": "arrays"}, {}, "labels is not read by source arrays"),
        ({"labels": "dirs"}, {}, "expected 'auto', 'folders' or 'none'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(recipe, data, more, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe(CAMERA, data, **more)
