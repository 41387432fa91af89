"""Pretraining, finetuning and probing show weights the images that they were trained on."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sslgh.data import training_set
from sslgh.engine.build import backbone_metadata, recipe_backbone
from sslgh.engine.checkpoint import Progress
from sslgh.engine.finetuning import Finetuning
from sslgh.engine.pretraining import Pretraining
from sslgh.engine.trainer import step_info
from sslgh.evaluation import probe_backbone
from sslgh.models import build_backbone, save_backbone
from sslgh.preprocessing import MEAN, STD, Preprocessing
from sslgh.recipe import make_recipe

OWN = Preprocessing(16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
PLAIN = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), 0.0) | {
    "crop_scale": [1, 1],
    "crop_ratio": [1, 1],
}


@pytest.fixture
def run(tmp_path):
    """A run directory whose weights have a mean and a standard deviation of their own."""
    card = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 16}
    (tmp_path / "a").mkdir()
    save_backbone(build_backbone("resnet18", width=0.125), tmp_path / "a", card | OWN.card())
    return tmp_path / "a"


def recipe(run, **stage):
    data = {"source": "digits", "augment": PLAIN, "workers": 0}
    settings = {"name": "x", "data": data, "model": {"init": str(run)}, "seed": 0}
    settings |= {"train": {"epochs": 1, "batch_size": 8}, "run_dir": str(run.parent / "x")}
    settings |= {"probe": [{"protocol": "knn"}]}
    return make_recipe(settings | stage)


def first_input(module):
    """Where the first batch that the first convolution in a module sees will stand."""
    seen = []
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def restored(images, moments):
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in moments)
    return (images * std + mean) * 255


def check(images) -> None:
    """Digits are gray: the channels agree, as whole numbers, if the right normalization is undone."""
    ours, imagenets = restored(images, (OWN.mean, OWN.std)), restored(images, (MEAN, STD))
    assert torch.allclose(ours, ours.mean(1, keepdim=True).round().expand_as(ours), atol=1e-2)
    assert ours.min() > -1e-2
    assert ours.max() >= 200
    assert not torch.allclose(imagenets[:, 0], imagenets[:, 1], atol=1)


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        (Pretraining, {"method": {"name": "simclr"}}),
        (Finetuning, {"finetune": {"objective": "ce", "policy": "none"}}),
    ],
)
def test_training_normalizes_by_the_mean_and_deviation_of_its_weights(run, kind, stage) -> None:
    settings = recipe(run, **stage)
    trained = kind(settings, Accelerator(cpu=True), training_set(settings.data))
    seen = first_input(trained.run.module)
    batches = trained.batches(Progress(), None)
    trained.loss(next(batches), step_info(trained.run, Progress()))
    batches.close()
    check(seen[0])


def test_probing_normalizes_by_the_mean_and_deviation_of_its_weights(run) -> None:
    settings = recipe(run, method={"name": "simclr"})
    backbone = recipe_backbone(settings, 16)
    seen = first_input(backbone)
    probe_backbone(
        backbone, settings, directory=run.parent / "y", accelerator=Accelerator(cpu=True)
    )
    check(seen[0])


def test_a_run_records_the_preprocessing_that_it_took_over(run) -> None:
    card = backbone_metadata(recipe(run, method={"name": "simclr"}), image_size=16, method="x")
    assert Preprocessing.from_card(card) == OWN
