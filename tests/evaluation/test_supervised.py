"""Judging a supervised run whose folder has changed since; the classifier takes all for dogs."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from sslgh.data import DataError, training_set
from sslgh.data.run_record import record_text
from sslgh.evaluation import evaluate_run
from sslgh.evaluation.supervised import _class_scores
from sslgh.models import build_backbone, save_backbone
from sslgh.models.serialization import save_classifier
from sslgh.recipe import Finetune, make_recipe, recipe_text

CARD = {"backbone": "resnet20", "stem": "cifar", "width": 0.25, "patch": None, "image_size": 8}


def plant(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / name)


@pytest.fixture
def root(tmp_path):
    """Six cats and three dogs to train on, two of each to test on."""
    names = [f"train/cat/{i}.png" for i in range(6)] + [f"train/dog/{i}.png" for i in range(3)]
    names += [f"test/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    plant(tmp_path / "data", *names)
    return tmp_path / "data"


@pytest.fixture
def run(root, tmp_path):
    """The recipe of a run that is done: cat, dog are the rows of its classifier."""
    data = {"source": "folder", "root": str(root), "size": 8, "workers": 0}
    settings = {"name": "r", "data": data, "finetune": {"objective": "ce"}}
    recipe = make_recipe(settings | {"run_dir": str(tmp_path / "run")})
    recipe.directory.mkdir()
    (recipe.directory / "recipe.yaml").write_text(recipe_text(recipe))
    (recipe.directory / "images.json").write_text(record_text(training_set(recipe.data)))
    torch.manual_seed(0)
    backbone = build_backbone("resnet20", width=0.25)
    save_backbone(backbone, recipe.directory, CARD)
    features = backbone.eval()(torch.zeros(1, 3, 8, 8)).shape[1]
    classifier = nn.Linear(features, 2)
    nn.init.zeros_(classifier.weight)
    classifier.bias.data = torch.tensor([0.0, 0.5])
    save_classifier(classifier, recipe.directory, ("cat", "dog"))
    return recipe


def judged(recipe):
    (result,) = evaluate_run(recipe, Accelerator(cpu=True))
    return result


def accuracies(result):
    return {name: scores.class_accuracy for name, scores in result.scores.items()}


def test_the_classes_are_those_of_the_rows_of_the_classifier(root, run, caplog):
    before = judged(run)
    assert accuracies(before) == {"ce": [0, 1], "la-posthoc": [0, 1]}
    assert caplog.messages == []
    plant(root, "train/ant/0.png", "train/bee/0.png", *(f"train/dog/{i}.png" for i in range(9, 20)))
    after = judged(run)
    assert after == before
    assert caplog.messages == []


def test_many_classes_without_training_images_are_warned_of_in_a_short_line(caplog):
    counts = torch.zeros(1000).index_fill_(0, torch.tensor([3, 999]), 5)
    _class_scores(nn.Linear(4, 1000), torch.zeros(2, 4), counts, Finetune(objective="la"))
    assert [record.getMessage() for record in caplog.records] == [
        "classes 0, 1, 2 and 995 more have no training image and are never predicted"
    ]


def test_the_prior_is_that_of_the_images_it_was_trained_on(root, run):
    # By the six cats and three dogs it adds log(2) to dog; three cats of now would add log(1).
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = run.directory / "classifier.safetensors"
    save_file(load_file(path) | {"bias": torch.tensor([0.5, 0.0])}, path)
    before = judged(run)
    assert accuracies(before) == {"ce": [1, 0], "la-posthoc": [0, 1]}
    for i in range(3):
        (root / f"train/cat/{i}.png").unlink()
    after = judged(run)
    assert accuracies(after) == accuracies(before)
    assert after.train_counts == after.group_counts == [6, 3]


def test_test_images_of_a_class_without_a_row_are_refused(root, run):
    plant(root, "train/ant/0.png", "test/ant/0.png")
    with pytest.raises(DataError, match="class 'ant' of the test images is none of the 2 classes"):
        judged(run)
