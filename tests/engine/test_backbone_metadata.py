import pytest
import torch

from sslgh.engine.build import backbone_metadata, recipe_backbone
from sslgh.models import load_backbone, save_backbone
from sslgh.recipe import RecipeError

VIT = ("model.backbone=vit_tiny", "model.width=1")


def test_a_run_that_starts_from_another_at_another_size_can_be_loaded_again(tiny, tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    recipe = tiny(*VIT)
    card = backbone_metadata(recipe, image_size=16, method="simclr")
    assert card["patch"] == 2
    save_backbone(recipe_backbone(recipe, 16), first, card)
    recipe = tiny("model.width=1", f"model.init={first}")
    backbone = recipe_backbone(recipe, 32).eval()
    card = backbone_metadata(recipe, image_size=32, method="simclr")
    assert (card["backbone"], card["patch"], card["image_size"]) == ("vit_tiny", 2, 32)
    save_backbone(backbone, second, card)
    again, _ = load_backbone(second)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), backbone(x))
    with pytest.raises(RecipeError, match=r"model\.patch is 4, but .* holds 2; leave"):
        recipe_backbone(tiny("model.width=1", f"model.init={first}", "model.patch=4"), 32)


def test_a_recipe_turns_checkpointing_on(tiny) -> None:
    assert recipe_backbone(tiny(*VIT, "model.checkpointing=true"), 16).grad_checkpointing
    assert not recipe_backbone(tiny(*VIT), 16).grad_checkpointing


def test_the_card_of_a_resnet_has_no_patch(tiny) -> None:
    assert backbone_metadata(tiny(), image_size=16, method="simclr")["patch"] is None
