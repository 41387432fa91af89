"""Probes of a run whose folder has changed since are probes on the images of the run."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from sslgh.data import training_set
from sslgh.data.run_record import record_text
from sslgh.evaluation import check_probes, probe_backbone
from sslgh.recipe import make_recipe, recipe_text

CUT = {"imbalance": 2, "max_per_class": 12}
PROBES = [{"protocol": "knn", "neighbors": 3}, {"protocol": "gh-50shot"}]


def plant(folder, names, label):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng([label, *name.encode()]).integers(0, 160, (8, 8, 3))
        Image.fromarray((pixels + 40 * label).astype(np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    """Two classes of 50 images to train on and four to test on."""
    for label, name in enumerate(("cat", "dog")):
        plant(tmp_path / "data/train" / name, [f"{i:02}" for i in range(50)], label)
        plant(tmp_path / "data/test" / name, ["a", "b", "c", "d"], label)
    return tmp_path / "data"


@pytest.fixture
def begun(root, tmp_path):
    """``begun(probes, long_tail=None)``: the recipe of a run that has begun."""

    def make(probes, **data):
        data = {"source": "folder", "root": str(root), "size": 8, "workers": 0} | data
        settings = {"name": "r", "data": data, "method": {"name": "simclr"}, "probe": probes}
        recipe = make_recipe(settings | {"run_dir": str(tmp_path / "run")})
        recipe.directory.mkdir()
        (recipe.directory / "recipe.yaml").write_text(recipe_text(recipe))
        (recipe.directory / "images.json").write_text(record_text(training_set(recipe.data)))
        return recipe

    return make


def probed(recipe):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    settings = {"directory": recipe.directory, "accelerator": Accelerator(cpu=True)}
    return [asdict(result) for result in probe_backbone(backbone, recipe, **settings)]


def test_a_probe_is_that_of_before_whatever_has_come(root, begun, caplog):
    recipe = begun(PROBES[:1], long_tail=CUT)
    before = probed(recipe)
    assert before[0]["train_counts"] == before[0]["group_counts"] == [12, 6]
    plant(root / "train/cat", [f"0{i:02}" for i in range(30)], 0)
    plant(root / "train/dog", [f"0{i:02}" for i in range(30)], 1)
    assert probed(recipe) == before
    assert caplog.messages == []


def test_missing_images_are_left_out_and_the_shots_are_drawn_from_all(root, begun, caplog):
    recipe = begun(PROBES[:1])
    (root / "train/dog/07.png").unlink()
    plant(root / "train/cat", ["x", "y"], 0)
    (result,) = probed(recipe)
    assert (result["train_counts"], result["group_counts"]) == ([50, 49], [50, 50])
    (warning,) = caplog.messages
    assert warning.startswith("1 of 100 images of the run are missing from data.root")


def test_a_folder_that_can_no_longer_be_cut_is_no_hindrance_to_a_run_that_has_begun(root, begun):
    recipe = begun(PROBES, long_tail=CUT)
    plant(root / "train/ape", ["a"], 1)
    with pytest.raises(ValueError, match="long_tail needs"):
        check_probes(recipe.data, recipe.probe[:1])
    check_probes(recipe.data, recipe.probe[:1], recipe.directory)
    # The shots are of the training split as it is now.
    with pytest.raises(ValueError, match="class 'ape' has 1"):
        check_probes(recipe.data, recipe.probe, recipe.directory)


def test_other_data_are_probed_as_they_are(root, begun):
    recipe = begun(PROBES[:1], long_tail=CUT)
    plant(root / "train/cat", ["x"], 0)
    other = recipe.data.model_copy(update={"long_tail": None})
    (result,) = probed(recipe.model_copy(update={"data": other}))
    assert result["train_counts"] == result["group_counts"] == [51, 50]
