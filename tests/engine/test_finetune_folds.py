"""The out-of-fold estimate of a finetuning without labeled test images, on drawn photos."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from sslgh import commands
from sslgh.classify.selection import stratified_folds
from sslgh.data import training_set
from sslgh.data.run_record import read_record
from sslgh.engine import finetune_folds as folds
from sslgh.engine.exit_codes import Stopped
from sslgh.engine.finetuning import Finetuning
from sslgh.engine.launch import init_accelerator
from sslgh.evaluation import evaluate_run, read_results
from sslgh.models import load_backbone, load_classifier
from sslgh.recipe import make_recipe
from sslgh.recipe.loading import apply_overrides

COUNTS = {"ape": 12, "bee": 6, "cat": 3, "dog": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise in gray of a level that differs between kinds."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind, (name, count) in enumerate(COUNTS.items()):
        (root / name).mkdir()
        for i in range(count):
            noise = generator.normal(60 + 45 * kind, 25, (8, 8, 3)).clip(0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def recipe_of(root, run_dir, *overrides):
    settings = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {"source": "folder", "root": str(root), "size": 8, "workers": 0},
        "model": {"width": 0.125, "stem": "cifar"},
        "finetune": {"objective": "ce", "folds": 3, "policy": "none"},
        "optim": {"lr": 0.1},
        "train": {"epochs": 2, "batch_size": 8, "checkpoint_every": 1},
    }
    return make_recipe(apply_overrides(settings, list(overrides)))


@pytest.fixture(scope="module")
def estimated(photos, tmp_path_factory):
    recipe = recipe_of(photos, tmp_path_factory.mktemp("runs") / "run")
    return recipe, commands.finetune(recipe).results


def test_every_image_is_predicted_by_the_network_that_has_not_seen_it(estimated):
    recipe, (result,) = estimated
    images = training_set(recipe.data)
    part = stratified_folds(torch.from_numpy(images.labels), 3, seed=recipe.seed).numpy()
    assert result.test_counts == [12, 6, 3, 0]  # the only dog is in every network's images
    right = np.zeros(4)
    for fold in range(3):
        directory = recipe.directory / "folds" / str(fold + 1)
        network, card = load_classifier(directory)
        rows = np.flatnonzero(part == fold)
        views = torch.stack([card["preprocess"](images.image(i)) for i in rows])
        with torch.no_grad():
            answers = network(views).argmax(1).numpy()
        np.add.at(right, images.labels[rows], answers == images.labels[rows])
        seen = training_set(
            recipe.data.model_copy(update={"subset": directory.with_suffix(".txt")})
        )
        assert set(seen.names) == {images.names[i] for i in np.flatnonzero(part != fold)}
    accuracies = result.scores["ce"].class_accuracy
    assert accuracies[:3] == pytest.approx(right[:3] / [12, 6, 3])
    assert accuracies[3] is None


def test_the_result_names_the_estimate_and_both_objectives(estimated):
    recipe, (result,) = estimated
    assert result.settings["out_of_fold"] == 3
    assert "out-of-fold estimate by 3 further networks" in result.summary
    assert set(result.scores) == {"ce", "la-posthoc"}
    assert result.train_counts == [12, 6, 3, 1]
    assert read_results(recipe.directory) == [result]


def test_the_network_of_the_run_has_seen_all_images_and_is_not_that_of_a_fold(
    estimated, photos, tmp_path
):
    recipe, _ = estimated
    alone = recipe_of(photos, tmp_path / "alone", "finetune.folds=null")
    assert commands.finetune(alone).results == []
    assert not (alone.directory / "folds").exists()
    for name, value in load_backbone(alone.directory)[0].state_dict().items():
        assert torch.equal(value, load_backbone(recipe.directory)[0].state_dict()[name])


def test_a_stop_in_a_fold_is_resumed_and_probing_it_meanwhile_names_the_command(
    photos, tmp_path, monkeypatch, capsys, estimated
):
    recipe = recipe_of(photos, tmp_path / "run")
    begun = []

    def begin_epoch(stage, epoch, global_step, logger):
        begun.append(stage.run.recipe.name)
        if begun[-1] == "tiny-fold-2" and epoch == 0 and begun.count("tiny-fold-2") == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Finetuning, "begin_epoch", begin_epoch)
    with pytest.raises(Stopped):
        commands.finetune(recipe)
    assert evaluate_run(recipe, init_accelerator()) == []
    assert "run sslgh finetune with its recipe again" in capsys.readouterr().out
    again = commands.finetune(recipe).results
    assert list(dict.fromkeys(begun)) == ["tiny", "tiny-fold-1", "tiny-fold-2", "tiny-fold-3"]
    assert begun.count("tiny") == begun.count("tiny-fold-1") == 2  # epochs, none of them twice
    assert again[0].scores == estimated[1][0].scores


def copied(photos, root):
    for kind in photos.iterdir():
        (root / kind.name).mkdir(parents=True)
        for file in kind.iterdir():
            os.link(file, root / kind.name / file.name)


def test_photos_that_come_while_folds_are_trained_are_in_none(photos, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    copied(photos, root)
    recipe = recipe_of(root, tmp_path / "run")
    real, begun = folds.finetune, []

    def finetune(fold, accelerator):
        real(fold, accelerator)
        # Shifts all positions between two folds.
        os.link(root / "bee/0.png", root / f"ape/00{len(begun)}.png")
        begun.append(fold)

    monkeypatch.setattr(folds, "finetune", finetune)
    (result,) = commands.finetune(recipe).results
    assert result.test_counts == [12, 6, 3, 0]
    images = [read_record(fold.directory).names for fold in begun]
    assert sum(len(names) for names in images) == 2 * 21 + 3
    assert not any("/00" in name for names in images for name in names)


def test_a_photo_that_a_list_names_twice_is_held_out_by_one_fold(photos, tmp_path):
    lines = [f"{file.relative_to(photos)},{file.parent.name}" for file in photos.rglob("*.png")]
    (tmp_path / "list.csv").write_text("\n".join([*lines, "ape/0.png,ape", "ape/1.png,bee"]))
    words = ("data.source=list", f"data.list={tmp_path}/list.csv", "train.epochs=1")
    (result,) = commands.finetune(recipe_of(photos, tmp_path / "run", *words)).results
    assert result.test_counts == [13, 7, 3, 0]


def test_an_estimate_is_asked_for_later(photos, tmp_path):
    words = ("train.epochs=1", "finetune.folds=null")
    assert commands.finetune(recipe_of(photos, tmp_path / "run", *words)).results == []
    again = recipe_of(photos, tmp_path / "run", "train.epochs=1", "finetune.folds=2")
    assert commands.finetune(again).results[0].settings["out_of_fold"] == 2


def test_with_labeled_test_images_there_are_no_folds(tiny, tmp_path):
    recipe = tiny("method=null", "finetune.policy=none", f"run_dir={tmp_path}/run")
    assert not folds.estimated_by_folds(recipe)


def test_classes_of_one_image_each_are_trained_without_an_estimate(tmp_path, capsys):
    root = tmp_path / "photos"
    for kind in ("ape", "bee"):
        (root / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / kind / "0.png")
    assert commands.finetune(recipe_of(root, tmp_path / "run")).results == []
    assert "nothing is evaluated" in capsys.readouterr().out


def test_folds_begin_with_the_weights_that_the_run_began_with(estimated, photos, tmp_path):
    recipe = recipe_of(
        photos,
        tmp_path / "run",
        f"model.init={estimated[0].directory}",
        "finetune.freeze=true",
        "finetune.folds=2",
        "train.epochs=1",
    )
    assert commands.finetune(recipe).results[0].settings["out_of_fold"] == 2
    frozen = load_backbone(recipe.directory / "folds/2")[0].state_dict()
    for name, value in load_backbone(estimated[0].directory)[0].state_dict().items():
        assert torch.equal(value, frozen[name])
