import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslgh.models import (
    CifarResNet,
    GlobalBatchNorm,
    build_backbone,
    load_backbone,
    save_backbone,
    use_global_batch_norm,
)


def images(number=3, side=32, seed=0, dtype=torch.float32):
    return torch.randn(
        number, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    # With the classifier, the counts known of these networks: 0.27 M, 0.46 M, 0.85 M.
    [("resnet20", 269_722, 20), ("resnet32", 464_154, 32), ("resnet56", 853_018, 56)],
)
def test_size_and_depth_are_those_of_the_paper(name, parameters, layers) -> None:
    backbone = build_backbone(name)
    model = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10))
    assert backbone.num_features == 64
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == layers


def naive(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Section 4.2 from the weights alone, batch statistics in training."""

    def norm(x, name):
        mean, variance = x.mean((0, 2, 3), True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (
            weights[f"{name}.{kind}"][None, :, None, None] for kind in ("weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(5):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = norm(y, f"{name}.bn1").clamp(min=0)
            y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            shortcut = torch.zeros_like(y)
            before = (y.shape[1] - x.shape[1]) // 2
            for channel in range(x.shape[1]):
                shortcut[:, before + channel] = x[:, channel, ::stride, ::stride]
            x = (y + shortcut).clamp(min=0)
    return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


@pytest.mark.parametrize("side", [32, 13])
def test_features_equal_those_written_from_the_paper(side) -> None:
    backbone = CifarResNet("resnet32", width=0.5).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    x = images(side=side, dtype=torch.float64)
    torch.testing.assert_close(backbone(x), naive(dict(backbone.named_parameters()), x))


@pytest.mark.parametrize(
    ("width", "channels"), [(0.25, (8, 8, 16)), (0.5, (8, 16, 32)), (2, (32, 64, 128))]
)
def test_width_scales_every_stage(width, channels) -> None:
    backbone = build_backbone("resnet20", width=width)
    stages = (backbone.layer1, backbone.layer2, backbone.layer3)
    assert tuple(stage[0].conv1.weight.shape[0] for stage in stages) == channels
    assert backbone.num_features == channels[-1]
    assert backbone(images(2, 16)).shape == (2, channels[-1])


def test_every_shortcut_carries_the_signal_without_parameters() -> None:
    backbone = build_backbone("resnet32").eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(("bn2.weight", "bn2.bias")):
                parameter.zero_()  # every residual is silent
    first = F.relu(backbone.bn1(backbone.conv1(images())))
    expected = F.pad(first[:, :, ::4, ::4].mean((2, 3)), (24, 24))
    torch.testing.assert_close(backbone(images()), expected)


def test_convolutions_start_with_the_variance_of_he_et_al() -> None:
    torch.manual_seed(0)
    for module in CifarResNet("resnet32").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan = module.weight[0].numel()
            spread = module.weight.std().item()
            assert spread == pytest.approx((2 / fan) ** 0.5, rel=0.1)


def test_a_cifar_resnet_comes_back_from_its_files(tmp_path) -> None:
    card = {"backbone": "resnet32", "stem": "cifar", "width": 0.5, "image_size": 32}
    backbone = build_backbone("resnet32", width=0.5).to(memory_format=torch.channels_last)
    backbone(images(4))
    save_backbone(backbone, tmp_path, card)
    again, found = load_backbone(tmp_path)
    torch.testing.assert_close(again.eval()(images()), backbone.eval()(images()))
    assert card.items() <= found.items()


def test_globalize_replaces_its_norms_and_keeps_its_function() -> None:
    backbone = build_backbone("resnet20", width=0.5).eval()
    expected = backbone(images())
    use_global_batch_norm(backbone)
    assert sum(isinstance(m, GlobalBatchNorm) for m in backbone.modules()) == 19
    torch.testing.assert_close(backbone(images()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "imagenet"}, "resnet32 .* has no imagenet stem; set model.stem: cifar"),
        ({"pretrained": True}, "resnet32 has no pretrained weights here"),
    ],
)
def test_options_that_do_not_apply_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone("resnet32", **options)
    with pytest.raises(ValueError, match=r"use resnet18, .*resnet32, resnet56, .*timm:NAME"):
        build_backbone("resnet33")
