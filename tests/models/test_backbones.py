import json

import pytest
import torch
import torchvision

from sslgh.models import build_backbone, load_backbone, save_backbone


@pytest.mark.parametrize(
    ("name", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)]
)
def test_a_resnet_of_full_width_with_the_imagenet_stem_takes_torchvisions_weights(
    name, features
) -> None:
    backbone = build_backbone(name, stem="imagenet")
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = torch.nn.Identity()
    backbone.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert backbone.num_features == features
    torch.testing.assert_close(backbone.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("name", "features"), [("resnet18", 128), ("resnet50", 512)])
def test_width_scales_every_channel_and_the_features(name, features) -> None:
    backbone = build_backbone(name, width=0.25)
    assert backbone.num_features == features
    assert backbone(torch.randn(2, 3, 16, 16)).shape == (2, features)
    assert backbone.conv1.weight.shape == (16, 3, 3, 3)


def test_the_cifar_stem_keeps_the_resolution_until_the_second_stage() -> None:
    backbone = build_backbone("resnet18", width=0.125)
    seen = {}
    backbone.layer1.register_forward_hook(lambda *args: seen.update(shape=args[2].shape))
    backbone(torch.zeros(2, 3, 32, 32))
    assert seen["shape"][2:] == (32, 32)


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:mobilenet_v3_small"]
)
def test_backbones_of_timm_and_torchvision_say_how_many_features_they_give(name) -> None:
    backbone = build_backbone(name, image_size=64).eval()
    size = 64 if name.startswith("timm:vit") else 96
    assert backbone(torch.zeros(2, 3, size, size)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet17", {}, "unknown backbone 'resnet17'"),
        ("timm:resnet18x", {}, "timm has no model 'resnet18x'; did you mean"),
        ("torchvision:nothing", {}, "torchvision has no classification model 'nothing'"),
        ("timm:resnet10t", {"width": 0.5}, "model.width applies to"),
        ("resnet18", {"pretrained": True}, "use torchvision:resnet18"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_named(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **options)


CARD = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 32}


def test_a_backbone_comes_back_from_its_files(tmp_path) -> None:
    backbone = build_backbone("resnet18", width=0.125).to(memory_format=torch.channels_last)
    backbone(torch.randn(4, 3, 16, 16))
    save_backbone(backbone, tmp_path, CARD)
    again, card = load_backbone(tmp_path)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.eval()(x), backbone.eval()(x))
    assert CARD.items() <= card.items()


def test_files_of_another_model_are_refused_in_one_sentence(tmp_path) -> None:
    save_backbone(build_backbone("resnet18", width=0.125), tmp_path, CARD)
    (tmp_path / "backbone.json").write_text(json.dumps(CARD | {"width": 0.25}))
    with pytest.raises(ValueError, match="is not a resnet18"):
        load_backbone(tmp_path)
    with pytest.raises(ValueError, match=r"holds no backbone\.json"):
        load_backbone(tmp_path / "nothing")
