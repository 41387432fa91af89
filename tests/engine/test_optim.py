import hashlib
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sslgh.engine.optim import build_optimizer, learning_rate, set_learning_rate
from sslgh.models import build_backbone
from sslgh.recipe import Optim


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize(("name", "decay_all", "exempt"), [
    ("sgd", True, 0), ("sgd", False, 4), ("adamw", True, 0), ("adamw", False, 4), ("lars", True, 4),
])  # fmt: skip
def test_biases_and_norms_are_exempt_where_they_should_be(name, decay_all, exempt) -> None:
    optimizer = build_optimizer(model(), Optim(name=name, decay_all=decay_all, weight_decay=0.1))
    decayed = [len(g["params"]) for g in optimizer.param_groups if g["weight_decay"] > 0]
    free = [len(g["params"]) for g in optimizer.param_groups if g["weight_decay"] == 0]
    assert (sum(decayed), sum(free)) == (6 - exempt, exempt)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_step_lowers_the_loss_at_the_rate_that_was_set(name) -> None:
    net, x = model(), torch.randn(16, 4)
    optimizer = build_optimizer(net, Optim(name=name, lr=9.0, weight_decay=1e-4))
    set_learning_rate(optimizer, 0.01)
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    before = net(x).square().mean()
    before.backward()
    optimizer.step()
    assert net(x).square().mean() < before


class Headed(nn.Module):
    """A backbone and a head, as a method has them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 2)


def per_parameter(net: nn.Module, optim: Optim, key: str) -> dict[str, float]:
    """What the groups say of each parameter; each stands in exactly one."""
    names = {id(p): name for name, p in net.named_parameters()}
    found = {}
    for group in build_optimizer(net, optim).param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group[key]
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize(("backbone", "spared"), [
    ("vit_tiny", {"backbone.cls_token", "backbone.pos_embed"}), ("swin_tiny", {"bias_table"}),
])  # fmt: skip
def test_a_transformer_keeps_from_decay_what_it_names_and_what_has_one_axis(
    name, backbone, spared
) -> None:
    net = Headed(build_backbone(backbone, image_size=16))
    decay = per_parameter(net, Optim(name=name, decay_all=False, weight_decay=0.1), "weight_decay")
    free = {key for key, value in decay.items() if value == 0}
    flat = {key for key, p in net.named_parameters() if p.ndim == 1}
    assert len(flat) > 50
    assert flat < free
    others = free - flat
    assert others
    assert all(any(key.endswith(part) for part in spared) for key in others)
    if name != "lars":
        everything = per_parameter(net, Optim(name=name, weight_decay=0.1), "weight_decay")
        assert set(everything.values()) == {0.1}


def test_the_rate_falls_from_the_heads_to_the_patches_of_a_vit() -> None:
    net = Headed(build_backbone("vit_tiny", image_size=16))
    scale = per_parameter(net, Optim(name="adamw", layer_decay=0.5), "lr_scale")
    assert scale["head.weight"] == scale["head.bias"] == 1
    assert scale["backbone.norm.weight"] == 0.5
    assert all(scale[f"backbone.blocks.{i}.attn.qkv.weight"] == 0.5 ** (12 - i) for i in range(12))
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert scale[f"backbone.{name}"] == 0.5**13


@pytest.mark.parametrize(("name", "deepest", "stem", "after"), [
    ("swin_tiny", "layers.3.blocks.1", "patch_embed.proj", ("norm", 0.5)),
    ("convnext_tiny", "stages.3.blocks.2", "stem.0", ("head.norm", 1.0)),
])  # fmt: skip
def test_a_hierarchy_counts_its_blocks(name, deepest, stem, after) -> None:
    net = Headed(build_backbone(name, image_size=16))
    scale = per_parameter(net, Optim(layer_decay=0.5), "lr_scale")
    assert {v for k, v in scale.items() if k.startswith(f"backbone.{deepest}.")} == {0.5}
    blocks = 12 if name == "swin_tiny" else 18
    assert scale[f"backbone.{stem}.weight"] == 0.5 ** (blocks + 1)
    assert scale[f"backbone.{after[0]}.weight"] == after[1]
    assert set(scale.values()) == {0.5**i for i in range(blocks + 2)}


@pytest.mark.parametrize(("name", "stages"), [
    ("resnet18", 4), ("resnet20", 3), ("torchvision:resnet18", 4),
])  # fmt: skip
def test_a_resnet_falls_by_stage(name, stages) -> None:
    net = Headed(build_backbone(name))
    scale = per_parameter(net, Optim(layer_decay=0.5), "lr_scale")
    for stage in range(1, stages + 1):
        rates = {v for k, v in scale.items() if k.startswith(f"backbone.layer{stage}.")}
        assert rates == {0.5 ** (stages + 1 - stage)}
    assert scale["backbone.conv1.weight"] == scale["backbone.bn1.bias"] == 0.5 ** (stages + 1)
    assert scale["head.weight"] == 1


def test_the_rate_of_a_step_is_multiplied_by_that_of_the_layer_and_a_frozen_one_stays_out() -> None:
    net = Headed(build_backbone("resnet20"))
    net.backbone.layer1.requires_grad_(False)
    optimizer = build_optimizer(net, Optim(layer_decay=0.5, momentum=0, weight_decay=0))
    set_learning_rate(optimizer, 0.4)
    set_learning_rate(optimizer, 0.2)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx(
        [0.2 / 16, 0.05, 0.1, 0.2]
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (before[name] - p).abs().max().item() for name, p in net.named_parameters()}
    assert moved["head.weight"] == pytest.approx(0.2, rel=1e-4)
    assert moved["backbone.layer3.0.conv1.weight"] == pytest.approx(0.1, rel=1e-4)
    assert moved["backbone.layer1.0.conv1.weight"] == 0


def test_no_layer_decay_leaves_two_groups_in_the_order_of_older_checkpoints() -> None:
    groups = build_optimizer(model(), Optim(decay_all=False, weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0]
    assert all("lr_scale" not in group for group in groups)


GROUPS = json.loads((Path(__file__).parent / "parameter_groups.json").read_text())
OPTIMS = {
    "sgd": Optim(weight_decay=0.1, nesterov=True),
    "adamw": Optim(name="adamw", decay_all=False, weight_decay=0.1),
    "adamw by layer": Optim(name="adamw", decay_all=False, weight_decay=0.1, layer_decay=0.65),
    "lars": Optim(name="lars", weight_decay=0.0),
    "lars by layer": Optim(name="lars", weight_decay=1e-6, layer_decay=0.75),
}
BACKBONES = (
    "resnet18", "resnet20", "torchvision:resnet18", "timm:resnet10t", "vit_tiny", "swin_tiny", "convnext_tiny"
)  # fmt: skip


def digest(net: nn.Module, optim: Optim) -> str:
    """SHA-256 of all groups: learning-rate scale, weight decay and names, in order."""
    names = {id(p): name for name, p in net.named_parameters()}
    groups = [
        [group.get("lr_scale"), group["weight_decay"], [names[id(p)] for p in group["params"]]]
        for group in build_optimizer(net, optim).param_groups
    ]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:16]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_groups_are_those_of_older_checkpoints_in_their_order(backbone) -> None:
    net = Headed(build_backbone(backbone, image_size=16))
    assert {name: digest(net, optim) for name, optim in OPTIMS.items()} == GROUPS[backbone]
    assert len(set(GROUPS[backbone].values())) == len(OPTIMS)


def test_a_backbone_whose_layers_have_no_known_order_is_refused() -> None:
    net = Headed(build_backbone("torchvision:squeezenet1_1"))
    with pytest.raises(
        ValueError, match=r"optim.layer_decay: the order of the layers of SqueezeNet"
    ):
        build_optimizer(net, Optim(layer_decay=0.5))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_rescales_weights_and_not_biases_whatever_the_decay(weight_decay) -> None:
    net = model()
    settings = Optim(name="lars", lr=1.0, momentum=0.0, weight_decay=weight_decay)
    optimizer = build_optimizer(net, settings)
    set_learning_rate(optimizer, 1.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        w, g = before[name], parameter.grad
        step = g
        if w.ndim > 1:  # equation 6 of arXiv:1708.03888
            trust = 0.001 * w.norm() / (g.norm() + weight_decay * w.norm() + 1e-8)
            step = trust * (g + weight_decay * w)
        torch.testing.assert_close(parameter.detach(), w - step)


def rates(
    optim: Optim, *, steps: int = 4, epochs: int = 10, gh_start: int | None = None
) -> list[float]:
    return [
        learning_rate(s, optim, steps_per_epoch=steps, epochs=epochs, gh_start=gh_start)
        for s in range(steps * epochs)
    ]


def test_warmup_is_linear_from_zero_and_ends_at_the_peak() -> None:
    found = rates(Optim(lr=0.8, warmup_epochs=2))
    assert found[:8] == pytest.approx([0.8 * (s + 1) / 8 for s in range(8)])
    assert found[8] == pytest.approx(0.8)
    assert max(found) == pytest.approx(0.8)


def test_cosine_goes_half_way_in_the_middle_and_ends_near_the_end_rate() -> None:
    found = rates(Optim(lr=1.0, warmup_epochs=0, lr_end=0.2))
    assert found[20] == pytest.approx(0.6)
    assert found[-1] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 39 / 40)))


def test_two_stages_meet_at_the_middle_rate_when_gh_begins() -> None:
    optim = Optim(lr=0.5, warmup_epochs=1, lr_mid=0.3, lr_end=1e-6, schedule="gh-two-stage")
    found = rates(optim, gh_start=5)
    assert found[4] == pytest.approx(0.5)
    assert found[20] == pytest.approx(0.3)
    assert found[19] == pytest.approx(0.3, abs=0.002)
    assert found[12] == pytest.approx(0.4)
    assert all(a >= b for a, b in itertools.pairwise(found[4:]))


def test_a_run_that_is_all_warmup_stays_finite() -> None:
    assert rates(Optim(lr=1.0, warmup_epochs=10))[-1] == pytest.approx(1.0)
