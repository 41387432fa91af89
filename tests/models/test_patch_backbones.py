from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from sslgh.models import build_backbone, load_backbone, save_backbone
from sslgh.models.backbones import resolve_patch
from sslgh.models.patch_backbones import FAMILIES, patch_for

VITS = ("vit_tiny", "vit_small", "vit_base", "vit_large")
WIDTHS = {
    "vit_tiny": 192,
    "vit_small": 384,
    "vit_base": 768,
    "vit_large": 1024,
    "swin_tiny": 768,
    "convnext_tiny": 768,
}


def images(size: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def grids(backbone: nn.Module, size: int) -> list[int]:
    """Side of what each stage, or the patches, give."""
    seen = []
    stages = getattr(backbone, "layers", None) or getattr(backbone, "stages", None)
    for module in stages or [backbone.patch_embed]:
        module.register_forward_hook(lambda *args: seen.append(args[2].shape[2]))
    backbone(images(size))
    return seen


def test_every_name_has_a_width() -> None:
    assert set(WIDTHS) == set(FAMILIES)


@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny", "convnext_tiny"])
@pytest.mark.parametrize("size", [16, 32])
def test_a_small_image_gives_features_and_every_parameter_learns(name, size) -> None:
    backbone = build_backbone(name, image_size=size)
    features = backbone(images(size))
    assert features.shape == (2, WIDTHS[name])
    assert backbone.num_features == WIDTHS[name]
    (features * torch.randn_like(features)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


@pytest.mark.parametrize("size", [8, 14, 16, 20, 28, 32, 36, 40, 48, 64, 96, 112, 128, 160, 224])
def test_a_vit_sees_about_eight_to_fourteen_tokens_a_side(size) -> None:
    patch = patch_for("vit_base", size)
    assert size % patch == 0
    assert 8 <= size / patch <= 14


@pytest.mark.parametrize("name", VITS)
def test_a_vit_at_224_pixels_is_the_published_one(name) -> None:
    assert resolve_patch(name, patch=None, image_size=224) == 16
    with torch.device("meta"):
        backbone = build_backbone(name)
        theirs = timm.create_model(f"{name}_patch16_224", num_classes=0)
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert backbone.num_features == WIDTHS[name]


@pytest.mark.parametrize(("name", "theirs"), [
    ("swin_tiny", "swin_tiny_patch4_window7_224"), ("convnext_tiny", "convnext_tiny"),
])  # fmt: skip
def test_a_hierarchy_at_224_pixels_is_the_published_one(name, theirs) -> None:
    other = timm.create_model(theirs, num_classes=0).eval()
    backbone = build_backbone(name, image_size=224).eval()
    backbone.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(224, 1)), other(images(224, 1)))


def test_a_vit_gives_its_class_token_after_the_last_norm() -> None:
    backbone = build_backbone("vit_tiny", image_size=32).eval()
    tokens = backbone.forward_features(images(32))
    assert tokens.shape == (2, 1 + 8 * 8, 192)
    torch.testing.assert_close(backbone(images(32)), tokens[:, 0])


@pytest.mark.parametrize(("name", "patch", "size", "sides"), [
    ("vit_tiny", None, 32, [8]), ("vit_tiny", 8, 32, [4]), ("vit_tiny", None, 16, [8]),
    ("swin_tiny", None, 32, [16, 8, 4, 2]), ("swin_tiny", 4, 32, [8, 4, 2, 1]),
    ("convnext_tiny", None, 32, [16, 8, 4, 2]), ("convnext_tiny", 1, 32, [32, 16, 8, 4]),
    ("convnext_tiny", None, 64, [16, 8, 4, 2]),
])  # fmt: skip
def test_the_patch_sets_the_side_of_the_first_stage_and_each_next_one_halves_it(
    name, patch, size, sides
) -> None:
    assert grids(build_backbone(name, patch=patch, image_size=size), size)[: len(sides)] == sides


def test_swin_at_32_pixels_has_windows_of_four() -> None:
    backbone = build_backbone("swin_tiny", image_size=32)
    assert [stage.blocks[0].window_size for stage in backbone.layers] == [(4, 4)] * 3 + [(2, 2)]
    assert backbone.layers[0].blocks[1].shift_size == (2, 2)


@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny", "convnext_tiny"])
def test_no_path_is_dropped_so_that_training_does_not_depend_on_the_generator(name) -> None:
    backbone = build_backbone(name, image_size=16).train()
    assert torch.equal(backbone(images(16)), backbone(images(16)))


@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny", "convnext_tiny"])
def test_local_crops_of_another_size_go_through_the_same_weights(name) -> None:
    backbone = build_backbone(name, image_size=32)
    assert backbone(images(16)).shape == (2, WIDTHS[name])


def test_positions_of_the_own_size_are_taken_as_they_are() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", image_size=32).eval()
    fixed = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=4)
    fixed.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(backbone(images(32)), fixed.eval()(images(32)))


@pytest.mark.parametrize(("name", "options", "message"), [
    ("vit_tiny", {"patch": 5}, "patch of 5 pixels, got 32; set model.patch: 4 or 8, or data.size: 30 or 35"),
    ("vit_tiny", {"patch": 64}, "set model.patch: 32, or data.size: 64"),
    ("swin_tiny", {"patch": 3}, "8 patches of 3 pixels, got 32; set model.patch: 2 or 4, or data.size: 24 or 48"),
    ("swin_tiny", {"image_size": 28}, "multiple of 8 patches of 1 pixels, got 28; set data.size: 24 or 32"),
    ("vit_tiny", {"width": 0.5}, "model.width applies to resnet18, .*, not to vit_tiny"),
    ("vit_tiny", {"pretrained": True}, "use timm:vit_tiny_patch16_224"),
    ("resnet18", {"patch": 4}, "model.patch applies to vit_tiny, .*, not to resnet18"),
    ("timm:resnet10t", {"patch": 4}, "model.patch applies to vit_tiny, .*, not to timm:resnet10t"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_nearest_remedy(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **{"image_size": 32} | options)


@pytest.mark.parametrize(("name", "size", "message"), [
    ("vit_tiny", 18, "vit_tiny with model.patch 4 takes .* multiples of 4 pixels, got 18 x 18"),
    ("swin_tiny", 24, "multiples of 16 pixels, got 24 x 24"),
])  # fmt: skip
def test_an_image_of_a_size_that_does_not_fit_is_refused_also_by_a_copy(
    name, size, message
) -> None:
    backbone = build_backbone(name, image_size=32)
    for module in (backbone, deepcopy(backbone)):
        with pytest.raises(ValueError, match=message):
            module(images(size))


def card(name: str, size: int, patch: int | None) -> dict[str, object]:
    return {
        "backbone": name,
        "stem": "cifar",
        "width": 1.0,
        "patch": resolve_patch(name, patch=patch, image_size=size),
        "image_size": size,
    }


@pytest.mark.parametrize(("name", "patch"), [
    ("vit_tiny", None), ("vit_tiny", 8), ("swin_tiny", 1), ("convnext_tiny", None), ("convnext_tiny", 1),
])  # fmt: skip
def test_a_backbone_comes_back_from_its_files_with_its_patch(tmp_path, name, patch) -> None:
    backbone = build_backbone(name, patch=patch, image_size=32).eval()
    save_backbone(backbone, tmp_path, card(name, 32, patch))
    again, _ = load_backbone(tmp_path)
    assert torch.equal(again.eval()(images(32)), backbone(images(32)))


def test_the_card_of_an_older_run_has_no_patch_and_still_loads(tmp_path) -> None:
    backbone = build_backbone("timm:vit_tiny_patch16_224", image_size=32).eval()
    old = card("timm:vit_tiny_patch16_224", 32, None)
    assert old.pop("patch") is None
    save_backbone(backbone, tmp_path, old)
    again, _ = load_backbone(tmp_path)
    assert torch.equal(again.eval()(images(32)), backbone(images(32)))


@pytest.mark.parametrize("name", [
    "vit_tiny", "swin_tiny", "convnext_tiny", "timm:vit_tiny_patch16_224", "timm:resnet10t",
])  # fmt: skip
def test_a_trained_backbone_goes_to_another_size_and_comes_back_from_there(tmp_path, name) -> None:
    save_backbone(build_backbone(name, image_size=32), tmp_path, card(name, 32, None))
    larger, first = load_backbone(tmp_path, image_size=64)
    save_backbone(larger.eval(), tmp_path, first | {"image_size": 64})
    again, _ = load_backbone(tmp_path)
    assert torch.equal(again.eval()(images(64)), larger(images(64)))


def test_a_size_that_the_trained_patch_does_not_divide_is_refused(tmp_path) -> None:
    save_backbone(build_backbone("vit_tiny", image_size=32), tmp_path, card("vit_tiny", 32, 4))
    with pytest.raises(ValueError, match=r"patch of 4 pixels, got 30; .*data.size: 28 or 32"):
        load_backbone(tmp_path, image_size=30)


def test_larger_windows_keep_the_bias_of_a_token_for_itself_and_for_the_farthest(tmp_path) -> None:
    save_backbone(build_backbone("swin_tiny", image_size=32), tmp_path, card("swin_tiny", 32, None))
    small, _ = load_backbone(tmp_path)
    large, _ = load_backbone(tmp_path, image_size=48)  # windows of 6 instead of 4
    before, after = (
        b.layers[0].blocks[0].attn.relative_position_bias_table.view(2 * w - 1, 2 * w - 1, -1)
        for b, w in ((small, 4), (large, 6))
    )
    torch.testing.assert_close(after[5, 5], before[3, 3])
    torch.testing.assert_close(after[0, -1], before[0, -1], rtol=0, atol=1e-3)
