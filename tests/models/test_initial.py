"""Where a backbone begins: its weights, its preprocessing, and what is refused in a sentence."""

import time

import pytest
import timm
import torch
from timm.models import save_for_hf

from sslgh.engine.build import recipe_backbone
from sslgh.models import build_backbone, load_backbone, save_backbone
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Recipe
from sslgh.recipe.schema import Model

SMALL = {"backbone": "resnet18", "width": 0.125}
OWN = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3), "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A model of timm, saved as for the hub, whose weights want a mean of their own, and the model."""
    torch.manual_seed(3)
    model = timm.create_model("resnet10t")
    config = model.pretrained_cfg | OWN | {"input_size": (3, 64, 64), "crop_pct": 0.8}
    model.pretrained_cfg = config
    folder = tmp_path_factory.mktemp("hub")
    save_for_hf(model, folder, model_config={"pretrained_cfg": config}, safe_serialization=True)
    return folder, model.eval()


def outputs(backbone):
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    with torch.no_grad():
        return backbone.eval()(x)


def test_a_folder_saved_for_the_hub_gives_its_weights_and_its_preprocessing(hub_folder) -> None:
    folder, theirs = hub_folder
    model = Model(init=f"local-dir:{folder}")
    card = initial_card(model)
    assert (card["backbone"], card["image_size"]) == ("timm:resnet10t", 64)
    backbone = initial_backbone(model, 64)
    with torch.no_grad():
        x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert torch.equal(outputs(backbone), expected)
    found = Preprocessing.of(backbone)
    assert found == Preprocessing(64, (64, 80), "bicubic", mean=OWN["mean"], std=OWN["std"])


def test_a_saved_backbone_keeps_the_preprocessing_of_the_weights_it_began_with(
    hub_folder, tmp_path
) -> None:
    model = Model(init=f"local-dir:{hub_folder[0]}")
    backbone, card = initial_backbone(model, 64), initial_card(model)
    save_backbone(backbone, tmp_path, card)
    again, found = load_backbone(tmp_path)
    assert Preprocessing.of(again) == Preprocessing.of(backbone) == found["preprocess"]
    started = initial_backbone(Model(init=str(tmp_path)), 64)
    assert torch.equal(outputs(started), outputs(backbone))


def test_a_backbone_that_is_drawn_has_the_preprocessing_that_all_had_before() -> None:
    assert Preprocessing.of(initial_backbone(Model(**SMALL), 32)) == Preprocessing().at(32)
    assert Preprocessing.of(torch.nn.Identity()) == Preprocessing()


def test_weights_of_a_file_begin_the_recipes_backbone(tmp_path, caplog) -> None:
    torch.manual_seed(1)
    source = build_backbone("resnet18", width=0.125)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "x.pt")
    found = initial_backbone(Model(**SMALL, init=str(tmp_path / "x.pt")), 32)
    assert torch.equal(outputs(found), outputs(source))
    assert "tensors loaded under 'state_dict.'" in caplog.text


def test_a_share_of_the_weights_is_taken_only_if_it_is_asked_for(tmp_path) -> None:
    state = dict(list(build_backbone("resnet18", width=0.125).state_dict().items())[:60])
    torch.save(state, tmp_path / "x.pt")
    settings = SMALL | {"init": str(tmp_path / "x.pt")}
    with pytest.raises(ValueError, match=r"fits .* of the backbone's"):
        initial_backbone(Model(**settings), 32)
    initial_backbone(Model(**settings, init_least=0.3), 32)


def test_what_stays_frozen_must_be_whole_in_the_file(tmp_path) -> None:
    state = build_backbone("resnet18", width=0.125).state_dict()
    del state["bn1.bias"]
    torch.save(state, tmp_path / "x.pt")
    settings = SMALL | {"init": str(tmp_path / "x.pt")}
    initial_backbone(Model(**settings), 32)
    frozen = "as they stay frozen: bn1.bias is .* and missing in the file"
    with pytest.raises(ValueError, match=frozen):
        initial_backbone(Model(**settings, adapter={"name": "norm"}), 32)
    recipe = Recipe(name="x", data={"source": "digits"}, model=settings, finetune={"freeze": True})
    with pytest.raises(ValueError, match=frozen):
        recipe_backbone(recipe, 32)


def test_the_library_weights_of_a_name_set_the_preprocessing_without_being_read() -> None:
    card = initial_card(Model(init="timm:tf_efficientnet_lite0"))
    assert (card["backbone"], card["mean"]) == ("timm:tf_efficientnet_lite0", (0.5, 0.5, 0.5))
    card = initial_card(Model(backbone="torchvision:vit_b_16", init="pretrained"))
    assert (card["image_size"], card["crop_of"]) == (224, (224, 256))


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "timm:resnet18"])
def test_without_a_network_the_hub_is_given_up_within_seconds(name, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"no connection to https://127\.0\.0\.1") as refused:
        initial_backbone(Model(init=name), 64)
    assert time.perf_counter() - began < 15
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ("nowhere", "is not a run directory, timm:NAME"),
        ("weights.npz", "is not a run directory"),
        ("missing.pt", "is not a run directory"),
        ("timm:resnet18x", "timm has no model 'resnet18x'; did you mean"),
        ("timm:resnet18.nope", "timm has no weights 'resnet18.nope'"),
        ("torchvision:resnet18x", "torchvision has no classification model 'resnet18x'"),
        ("local-dir:nowhere", "could not be fetched"),
    ],
)
def test_what_names_no_weights_is_refused_in_a_sentence(init, sentence, tmp_path) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        initial_backbone(Model(init=init), 64)
    assert "\n" not in str(refused.value)


def test_a_recipe_that_asks_for_another_backbone_than_its_weights_is_refused(tmp_path) -> None:
    save_backbone(
        build_backbone("resnet18", width=0.125),
        tmp_path,
        SMALL | {"stem": "cifar", "image_size": 32},
    )
    with pytest.raises(ValueError, match=r"model.width is 0.25, but .* holds 0.125; leave"):
        initial_backbone(Model(init=str(tmp_path), width=0.25), 32)
    vit = {"backbone": "vit_tiny", "stem": "cifar", "width": 1.0, "patch": 4, "image_size": 32}
    (tmp_path / "vit").mkdir()
    save_backbone(build_backbone("resnet18", width=0.125), tmp_path / "vit", vit)
    with pytest.raises(ValueError, match=r"model.patch is 2, but .* holds 4; leave"):
        initial_backbone(Model(init=str(tmp_path / "vit"), patch=2), 32)
    with pytest.raises(ValueError, match=r"model.backbone is resnet18, but timm:resnet34 holds"):
        initial_card(Model(init="timm:resnet34", backbone="resnet18"))
