"""Training crops are resized as the weights were trained, where the recipe does not say how."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sslgh.data import training_set
from sslgh.data.batch_sampler import LABELED, rng_for
from sslgh.data.crop import CROP_PARAMS, random_box
from sslgh.engine.checkpoint import Progress
from sslgh.engine.finetuning import Finetuning
from sslgh.engine.kept_init import with_kept_init
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import check_directory, open_directory
from sslgh.models import build_backbone, save_backbone
from sslgh.preprocessing import Preprocessing, pixels
from sslgh.recipe import load_recipe

CARD = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 8}


@pytest.fixture
def recipe(tiny, tmp_path):
    """``recipe(*overrides)``: one that starts from weights with bicubic interpolation."""
    (tmp_path / "base").mkdir()
    save_backbone(
        build_backbone("resnet18", width=0.125),
        tmp_path / "base",
        CARD | {"interpolation": "bicubic"},
    )
    model = f"model={{init: {tmp_path}/base, projector: {{hidden: 32, out: 16}}}}"
    return lambda *words: tiny(model, "train.epochs=1", *words)


def test_the_weights_decide_unless_the_recipe_does(recipe) -> None:
    def found(*words, began=False):
        return with_kept_init(recipe(*words), began=began).data.augment.interpolation

    assert found() == "bicubic"
    assert found("data.augment.interpolation=bilinear") == "bilinear"


def test_a_run_records_what_it_took_and_its_crops_are_those(recipe, tmp_path) -> None:
    a = pretrain(recipe(f"run_dir={tmp_path}/a"), init_accelerator())
    assert load_recipe(a / "recipe.yaml").data.augment.interpolation == "bicubic"
    weights = []
    for name, kind in (("b", "bicubic"), ("c", "bilinear")):
        words = f"run_dir={tmp_path}/{name}", f"data.augment.interpolation={kind}"
        weights.append(torch.load(_last(pretrain(recipe(*words), init_accelerator()))))
    own = torch.load(_last(a))
    assert same(own, weights[0])
    assert not same(own, weights[1])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Image.Resampling.BICUBIC),
        (("data.augment.interpolation=bilinear",), Image.Resampling.BILINEAR),
        (
            ("model={width: 0.125}",),
            Image.Resampling.BILINEAR,
        ),  # drawn: as before there were weights
    ],
)
def test_finetuning_resizes_its_views_as_its_weights_were_trained(recipe, words, expected) -> None:
    stage = "method=null", "finetune={objective: ce}", "data.size=72", "train.batch_size=4"
    settings = recipe(*stage, *words)
    if settings.model.init is not None:
        settings = with_kept_init(settings, began=False)
    images = training_set(settings.data)
    batches = Finetuning(settings, init_accelerator(), images).batches(Progress(), None)
    batch = next(batches)
    batches.close()
    for view, index in zip(batch.view.numpy(), batch.index.tolist(), strict=True):
        image, rng = images.image(index), rng_for(settings.seed, LABELED, 0, index)
        numbers = rng.random(CROP_PARAMS).tolist()
        box = random_box(*image.size, numbers, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
        crop = image.crop(box).resize((72, 72), expected)
        crop = ImageOps.mirror(crop) if rng.random() < 0.5 else crop
        assert np.array_equal(view, np.asarray(crop).transpose(2, 0, 1))


def test_finetuning_without_a_policy_shows_what_evaluation_shows(recipe, tmp_path) -> None:
    stage = "method=null", "finetune={objective: ce, policy: none}", "data.size=12"
    settings = recipe(*stage, "train.batch_size=4")
    own = Preprocessing(12, crop_of=(12, 14), interpolation="bicubic")
    save_backbone(build_backbone("resnet18", width=0.125), tmp_path / "base", CARD | own.card())
    images = training_set(settings.data)
    batches = Finetuning(settings, init_accelerator(), images).batches(Progress(), None)
    batch = next(batches)
    batches.close()
    for view, index in zip(batch.view.numpy(), batch.index.tolist(), strict=True):
        assert np.array_equal(view, pixels(own.crop(images.image(index))))


def _last(directory):
    return max((directory / "checkpoints").glob("step-*")) / "optimizer.pt"


def same(a, b):
    first, second = (state["state"] for state in (a, b))
    return all(
        torch.equal(first[n]["momentum_buffer"], second[n]["momentum_buffer"]) for n in first
    )


def test_a_run_from_before_keeps_the_bilinear_crops_that_it_began_with(recipe) -> None:
    old = recipe("data.augment.interpolation=bilinear")
    os.close(open_directory(old, {}))
    (old.directory / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0}\n')
    assert check_directory(recipe())
    assert with_kept_init(recipe(), began=True).data.augment.interpolation == "bilinear"
