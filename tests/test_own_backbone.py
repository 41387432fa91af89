"""A module of one's own, pretrained in Python."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sslgh
from sslgh import own_backbone
from sslgh.data import training_set
from sslgh.engine.build import build_method
from sslgh.engine.launch import init_accelerator
from sslgh.engine.run_dir import open_directory
from sslgh.evaluation import probe_backbone
from sslgh.models import load_backbone
from sslgh.models.library_backbones import with_features
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import load_recipe
from sslgh.recipe.run_recipe import load_run

OWN = Preprocessing(8, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))


class Own(nn.Module):
    """A small network that gives maps, and has its own moments and interpolation."""

    preprocessing = OWN

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images):
        """Maps (N, F, H, W)."""
        return self.norm(self.stem(images)).relu()


def drawn(seed=0, **settings):
    torch.manual_seed(seed)
    return Own(**settings)


def test_it_trains_and_its_card_says_whose_it_is_and_how_it_is_loaded(tiny) -> None:
    module, before = drawn(), drawn().state_dict()
    directory = sslgh.pretrain_backbone(tiny("train.epochs=1"), backbone=module)
    assert not torch.equal(module.stem.weight, before["stem.weight"])
    card = json.loads((directory / "backbone.json").read_text())
    assert card["backbone"].startswith("own:")
    assert card["backbone"].endswith(".Own")
    assert "module=" in card["load"]
    assert (card["mean"], card["std"]) == (list(OWN.mean), list(OWN.std))
    assert card["interpolation"] == "bicubic"
    assert load_recipe(directory / "recipe.yaml").data.augment.interpolation == "bicubic"
    loaded, card = load_backbone(directory, module=drawn(1))
    assert card["preprocess"] == OWN
    x = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module.eval()(x))
        assert loaded(x).shape == (2, loaded.num_features) == (2, 8)  # its maps are averaged


def test_a_stopped_run_resumes_to_the_same_bits_whatever_weights_the_module_has(
    tiny, tmp_path, stopped_at
) -> None:
    whole = sslgh.pretrain_backbone(
        tiny("train.epochs=2", f"run_dir={tmp_path}/a"), backbone=drawn()
    )
    recipe = tiny("train.epochs=2", f"run_dir={tmp_path}/b")
    with stopped_at(3):
        sslgh.pretrain_backbone(recipe, backbone=drawn())
    sslgh.pretrain_backbone(recipe, backbone=drawn(5))
    found = [load_file(folder / "backbone.safetensors") for folder in (whole, recipe.directory)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_crops_stay_bilinear_unless_the_module_states_another_interpolation(tiny) -> None:
    recipe = tiny()
    assert own_backbone._interpolation(recipe, drawn()) == "bicubic"
    assert own_backbone._interpolation(recipe, nn.Identity()) is None
    os.close(open_directory(recipe, {}))  # of a run from before modules had an interpolation
    assert own_backbone._interpolation(recipe, drawn()) is None


def test_it_is_probed_in_python(tiny) -> None:
    recipe = tiny("train.epochs=1", "probe=[{protocol: knn}]")
    directory = sslgh.pretrain_backbone(recipe, backbone=drawn())
    backbone, _ = load_backbone(directory, module=drawn())
    (result,) = probe_backbone(
        backbone, load_run(directory), directory=directory, accelerator=init_accelerator()
    )
    assert result.protocol == "knn"


def test_a_module_may_have_its_number_of_features_as_a_property() -> None:
    class Fixed(nn.Flatten):
        num_features = property(lambda self: 3 * 4 * 4)

    assert with_features(Fixed(), 4).num_features == 48


def test_what_cannot_be_done_is_refused_in_a_sentence(tiny, tmp_path) -> None:
    def refused(match, call):
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)

    pretrain = sslgh.pretrain_backbone
    refused(r"leave model\.init out", lambda: pretrain(tiny("model.init=timm:x"), backbone=drawn()))
    refused(
        r"Linear makes no features of two images \(2, 3, 8, 8\)",
        lambda: pretrain(tiny(), backbone=nn.Linear(3, 4)),
    )
    directory = pretrain(tiny("train.epochs=1"), backbone=drawn())
    refused("a module of your own, which only you can build", lambda: load_backbone(directory))
    refused("is not a own:", lambda: load_backbone(directory, module=drawn(width=4)))
    refused("holds another run", lambda: pretrain(tiny("train.epochs=1"), backbone=Narrow()))
    assert not (tmp_path / "elsewhere").exists()


class Narrow(Own):
    """Another class than the run's."""


def test_a_name_or_path_of_a_recipe_will_do_and_the_module_is_the_methods(
    tiny, recipe_file
) -> None:
    module = drawn()
    directory = sslgh.pretrain_backbone(Path(recipe_file), ["train.epochs=1"], backbone=module)
    assert (directory / "backbone.safetensors").is_file()
    assert build_method(tiny(), 8, module_with_width()).backbone is not None
    assert len(training_set(load_run(directory).data)) > 0


def module_with_width():
    module = drawn()
    module.num_features = 8
    return module
