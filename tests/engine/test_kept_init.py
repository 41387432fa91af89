"""Runs that began with the weights of another run, after that one has gone."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from sslgh.engine.finetuning import finetune
from sslgh.engine.kept_init import keep_init, with_kept_init
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import OtherRunError, check_directory, open_directory
from sslgh.models import build_backbone, load_backbone, save_backbone
from sslgh.recipe import RecipeError

CARD = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "patch": None, "image_size": 8}


def save_base(folder, seed=0):
    folder.mkdir()
    torch.manual_seed(seed)
    card = CARD | {"mean": [0.5] * 3, "std": [0.25] * 3}
    save_backbone(build_backbone("resnet18", width=0.125, stem="cifar"), folder, card)
    return folder


@pytest.fixture
def base(tmp_path):
    """A run directory with drawn weights."""
    return save_base(tmp_path / "base")


@pytest.fixture
def recipe(tiny, base):
    """``recipe(*overrides)``: one that starts from ``base``."""
    return lambda *words: tiny(
        f"model={{init: {base}, projector: {{hidden: 32, out: 16}}}}",
        "data.augment.interpolation=bilinear",
        *words,
    )


def begun(recipe):
    """The directory of a run that has taken its first steps."""
    os.close(open_directory(recipe, {}))
    keep_init(recipe)
    (recipe.directory / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0}\n')
    return recipe.directory


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_a_stopped_run_resumes_without_its_initial_weights_to_the_same_bits(
    recipe, base, tmp_path, stopped_at, stage
) -> None:
    words = ["train.epochs=2"]
    words += ["method=null", "finetune.policy=none"] if stage is finetune else []
    whole = stage(recipe(*words, f"run_dir={tmp_path}/whole"), init_accelerator())
    with stopped_at(3):
        stage(recipe(*words), init_accelerator())
    base.rename(tmp_path / "archived")
    resumed = stage(recipe(*words), init_accelerator())
    one, other = (load_file(folder / "backbone.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    cards = [json.loads((folder / "backbone.json").read_text()) for folder in (whole, resumed)]
    assert cards[0] == cards[1]


def test_the_copy_is_what_the_run_began_with(recipe, base) -> None:
    directory = begun(recipe())
    kept, card = load_backbone(directory / "init")
    expected, _ = load_backbone(base)
    assert card["width"] == 0.125
    assert all(
        torch.equal(a, b) for a, b in zip(kept.parameters(), expected.parameters(), strict=True)
    )
    shutil.rmtree(base)
    save_base(base, seed=1)  # by another run of that name
    assert torch.equal(
        next(load_backbone(directory / "init")[0].parameters()), next(kept.parameters())
    )
    with pytest.raises(OtherRunError, match=r"model\.init"):
        check_directory(recipe(f"model.init={save_base(base.with_name('other'), seed=1)}"))


def test_weights_that_have_moved_are_the_same_run_and_other_weights_are_not(
    recipe, base, tmp_path
) -> None:
    begun(recipe())
    shutil.copytree(base, tmp_path / "copy")
    assert check_directory(recipe(f"model.init={tmp_path}/copy"))
    for init in (save_base(tmp_path / "other", seed=1), tmp_path / "nowhere", "null"):
        with pytest.raises(OtherRunError, match=r"holds another run: model\.init is"):
            check_directory(recipe(f"model.init={init}"))


def test_a_link_that_cannot_be_made_is_a_copy(recipe, base, monkeypatch) -> None:
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    directory = begun(recipe())
    assert (directory / "init" / "backbone.safetensors").stat().st_nlink == 1
    assert load_backbone(directory / "init")[1] == load_backbone(base)[1]


def test_a_run_that_takes_a_directory_over_does_not_begin_with_the_weights_kept_there(
    recipe, base, tmp_path
) -> None:
    directory = begun(recipe())
    (directory / "metrics.jsonl").unlink()
    other = recipe(f"model.init={tmp_path}/nowhere")
    assert with_kept_init(other, began=True) is other
    with pytest.raises(RecipeError, match="nowhere"):
        pretrain(other, init_accelerator())
    os.close(open_directory(recipe("model.init=null"), {}))
    assert not (directory / "init").exists()


def test_weights_that_are_there_are_taken_from_there(recipe, base) -> None:
    begun(recipe())
    assert with_kept_init(recipe(), began=True) == recipe()
    base.rename(base.with_name("archived"))
    assert with_kept_init(recipe(), began=True).model.init == str(recipe().directory / "init")


def test_a_longer_run_starts_from_the_weights_as_its_message_advises(tiny, tmp_path) -> None:
    first = pretrain(tiny("train.epochs=1"), init_accelerator())
    with pytest.raises(OtherRunError) as error:
        pretrain(tiny("train.epochs=2"), init_accelerator())
    (init,) = [word for word in str(error.value).split() if word.startswith("model.init=")]
    longer = pretrain(
        tiny("train.epochs=2", init, f"run_dir={tmp_path}/longer"), init_accelerator()
    )
    assert load_backbone(longer)[1]["width"] == load_backbone(first)[1]["width"]
