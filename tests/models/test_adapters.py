"""Adapters: what moves, what stays, what is saved, and what is refused."""

import copy
import json
import math

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import VisionTransformer

from sslgh.models import (
    GlobalBatchNorm,
    adapters,
    build_backbone,
    load_backbone,
    use_global_batch_norm,
)
from sslgh.models.adapters import adapter_tensors, add_adapter, merged
from sslgh.models.serialization import load_adapter, save_adapted
from sslgh.recipe.adapter import Adapter

SIDE = 16
VIT = ["lora", "adaptformer", "bias", "norm", "blocks"]
CARD = {"stem": "cifar", "width": 1.0, "image_size": SIDE, "patch": None}


def backbone(name="vit_tiny", seed=0):
    torch.manual_seed(seed)
    return build_backbone(name, image_size=SIDE)


def adapted(name, model="vit_tiny", seed=0, **settings):
    module = backbone(model, seed)
    torch.manual_seed(1)
    return add_adapter(module, Adapter(name=name, **settings), image_size=SIDE)


def images(n=4):
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def train(module, steps=3, lr=0.1):
    """A few steps toward drawn features; what they changed, by name."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=lr)
    target = torch.randn(4, module.num_features, generator=torch.Generator().manual_seed(4))
    for _ in range(steps):
        optimizer.zero_grad()
        (module.train()(images()) - target).square().mean().backward()
        optimizer.step()
    module.eval()
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


def expected_to_move(name, names):
    """Names that an adapter may move, written down from its definition."""
    if name == "lora":
        return {n for n in names if ".lora_" in n}
    if name == "adaptformer":
        return {n for n in names if ".adaptformer." in n}
    if name == "bias":
        return {n for n in names if n.endswith("bias")}
    if name == "norm":
        return {n for n in names if ".norm1." in n or ".norm2." in n or n.startswith("norm.")}
    return {n for n in names if n.startswith(("blocks.11.", "norm."))}


@pytest.mark.parametrize("name", VIT)
def test_only_what_is_named_moves_and_all_of_it(name) -> None:
    module = adapted(name)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained == expected_to_move(name, dict(module.named_parameters()))
    moved = train(module)
    assert moved <= trained
    assert len(moved) > 0.6 * len(trained)  # the key's bias has no gradient, for one


@pytest.mark.parametrize("name", ["lora", "adaptformer"])
def test_a_new_adapter_adds_nothing(name) -> None:
    with torch.no_grad():
        assert torch.equal(adapted(name).eval()(images()), backbone().eval()(images()))


def test_adaptformer_is_the_equation_of_the_paper() -> None:
    module = adapted("adaptformer", width=3).double()
    train_width = module.blocks[0].adaptformer.down.out_features
    assert train_width == 3
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    block, x = module.eval().blocks[2], torch.randn(2, 5, 192, dtype=torch.float64)
    nn.init.normal_(block.norm2.weight)  # a norm of a norm would be the same norm
    found = block(x)
    middle = x + block.attn(block.norm1(x))
    added = adaptformer_of(block.adaptformer, middle)
    torch.testing.assert_close(found, middle + block.mlp(block.norm2(middle)) + added)


def adaptformer_of(one, x):
    """The term of the paper for the input of an MLP's norm."""
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    normed = (x - mean) / (var + one.norm.eps).sqrt() * one.norm.weight + one.norm.bias
    hidden = (normed @ one.down.weight.T + one.down.bias).clamp(min=0)
    return one.scale * (hidden @ one.up.weight.T + one.up.bias)


SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "num_classes": 0}
# Families of timm that scale the output of an MLP, with where they stand and what their blocks are called with.
SCALED = [
    ("beit_base_patch16_224", "blocks", ()),
    ("beitv2_base_patch16_224", "blocks", ()),
    ("cait_xxs24_224", "blocks", ()),
    ("cait_xxs24_224", "blocks_token_only", (torch.randn(2, 1, 16, dtype=torch.float64),)),
    ("deit3_small_patch16_224", "blocks", ()),
    ("vit_small_patch14_dinov2", "blocks", ()),
    ("vit_small_patch16_dinov3", "blocks", ()),
    ("xcit_nano_12_p16_224", "blocks", (2, 2)),
]


@pytest.mark.parametrize(("name", "blocks", "arguments"), SCALED)
def test_a_layer_scale_does_not_scale_the_adaptformer(name, blocks, arguments) -> None:
    torch.manual_seed(0)
    scale = {("eta" if name.startswith("xcit") else "init_values"): 1e-5}
    module = timm.create_model(name, img_size=SIDE, **SMALL, **scale)
    plain = copy.deepcopy(module).double().eval()
    adapters.add_adaptformers(module, 3, image_size=SIDE)
    module.double().eval()
    block, bare = (getattr(each, blocks)[1] for each in (module, plain))
    for parameter in block.adaptformer.parameters():
        nn.init.normal_(parameter, std=0.5)
    seen = []
    bare.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(
        2, 4 if name.startswith("xcit") else 5, 16, dtype=torch.float64
    )  # with a class token
    expected = bare(x, *arguments) + adaptformer_of(block.adaptformer, seen[0])
    torch.testing.assert_close(block(x, *arguments), expected)


def test_an_adaptformer_learns_under_a_layer_scale_of_nothing() -> None:
    torch.manual_seed(0)
    module = timm.create_model("beit_base_patch16_224", img_size=SIDE, **SMALL, init_values=1e-9)
    add_adapter(module, Adapter(name="adaptformer"), image_size=SIDE)
    (module(images()) * torch.arange(16)).sum().backward()
    assert all(block.adaptformer.up.weight.grad.abs().max() > 0.1 for block in module.blocks)


class ClassTokenBlock(nn.Module):
    """A block whose MLP takes the first token of what its norm takes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2, self.mlp, self.num_features = nn.LayerNorm(3), nn.Linear(3, 3), 3

    def forward(self, images):
        """First token of (N, 3, S, S), (N, 3)."""
        return self.mlp(self.norm2(images.flatten(2).transpose(1, 2))[:, :1])[:, 0]


def test_a_block_whose_mlp_takes_a_part_of_the_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no blocks whose MLP .*changes the shape of its input"):
        adapters.add_adaptformers(ClassTokenBlock(), 2, image_size=SIDE)


def test_the_down_projection_begins_as_lifts() -> None:
    torch.manual_seed(0)
    drawn = adapters.AdaptFormer(256, 64).down.weight.detach()
    # Kaiming with a = sqrt(5): variance 2 / ((1 + 5) F); a normal distribution has kurtosis 3, a uniform one 1.8.
    assert drawn.std().item() == pytest.approx((3 * 256) ** -0.5, rel=0.03)
    assert (drawn**4).mean() / (drawn**2).mean() ** 2 == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(("classes", "blocks"), [(10, 12), (100, 12), (1000, 12), (365, 24)])
def test_the_bottleneck_is_lifts(classes, blocks) -> None:
    width = adapters.adaptformer_width(classes, blocks)
    power = [2**k for k in range(20) if 2**k <= classes / (2 * blocks)]
    assert width == max([1, *power])


@pytest.mark.parametrize("name", VIT)
def test_what_is_saved_alone_and_merged_gives_what_was_trained(name, tmp_path) -> None:
    module = adapted(name)
    train(module)
    settings = {"init": "x", **Adapter(name=name).model_dump(mode="json")}
    save_adapted(module, tmp_path, CARD | {"backbone": "vit_tiny", "adapter": settings})
    with torch.no_grad():
        expected = module(images())
        assert not torch.allclose(expected, backbone().eval()(images()), atol=1e-3)
        again, _ = load_backbone(tmp_path)
        torch.testing.assert_close(again(images()), expected, atol=1e-5, rtol=1e-5)
        alone = load_adapter(backbone(), tmp_path / "adapter.safetensors", image_size=SIDE)
        assert torch.equal(alone(images()), expected)
    if name != "blocks":
        small, whole = (
            (tmp_path / f).stat().st_size for f in ("adapter.safetensors", "backbone.safetensors")
        )
        assert small < 0.03 * whole


@pytest.mark.parametrize("name", ["lora", "norm"])
def test_merged_weights_load_strictly_into_plain_timm(name, tmp_path) -> None:
    module = adapted(name)
    train(module)
    card = CARD | {"backbone": "vit_tiny", "adapter": {"init": "x", "name": [name]}}
    save_adapted(module, tmp_path, card)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIDE, patch_size=2)
    plain.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images()), module(images()), atol=1e-5, rtol=1e-5)


def test_an_adaptformer_does_not_merge_and_its_card_builds_it(tmp_path, caplog) -> None:
    module = adapted("adaptformer", width=2)
    card = CARD | {"backbone": "vit_tiny", "adapter": {"init": "x", "name": ["adaptformer"]}}
    save_adapted(module, tmp_path, card)
    assert "an AdaptFormer cannot be merged into a network without one" in caplog.text
    assert json.loads((tmp_path / "backbone.json").read_text())["adaptformer"] == 2
    with pytest.raises(ValueError, match="have an AdaptFormer already"):
        add_adapter(load_backbone(tmp_path)[0], Adapter(name="adaptformer"), image_size=SIDE)


def test_another_adapter_on_weights_with_an_adaptformer_loads_again(tmp_path) -> None:
    module = adapted("adaptformer", width=2)
    add_adapter(module, Adapter(name="norm"), image_size=SIDE)
    train(module)
    settings = {"init": "x", **Adapter(name="norm").model_dump(mode="json")}
    save_adapted(module, tmp_path, CARD | {"backbone": "vit_tiny", "adapter": settings})
    start = adapted("adaptformer", width=2)
    alone = load_adapter(start, tmp_path / "adapter.safetensors", image_size=SIDE)
    with torch.no_grad():
        assert torch.equal(alone(images()), module(images()))


def test_frozen_norms_keep_their_statistics_and_trained_ones_follow_the_batch() -> None:
    module = adapted(("norm", "blocks"), "resnet18")
    trained = {n.rpartition(".")[0] for n, p in module.named_parameters() if p.requires_grad}
    assert "layer4.0.conv1" in trained
    assert "layer3.0.conv1" not in trained
    assert "bn1" in trained
    module = adapted("blocks", "resnet18")
    moved = train(module)
    statistics = {name for name in moved if "running" in name}
    assert statistics
    assert all(name.startswith("layer4") for name in statistics)
    assert not any(name.startswith(("bn1", "layer1", "layer2", "layer3")) for name in moved)


def test_global_batch_norms_take_the_place_of_frozen_ones_and_stay_frozen() -> None:
    module = use_global_batch_norm(adapted("blocks", "resnet18"))
    norms = {n: m for n, m in module.named_modules() if isinstance(m, GlobalBatchNorm)}
    assert len(norms) == 20
    module.train()(images())
    assert {name for name, norm in norms.items() if norm.training} == {
        name for name in norms if name.startswith("layer4")
    }


def test_a_copy_such_as_a_teacher_has_an_adapter_of_its_own() -> None:
    module = adapted("adaptformer")
    teacher = copy.deepcopy(module)
    with torch.no_grad():
        before = teacher.eval()(images())
    train(module)
    with torch.no_grad():
        assert torch.equal(teacher.eval()(images()), before)
    teacher.train()(images())
    norms = [m for m in teacher.modules() if isinstance(m, nn.LayerNorm)]
    training = [norm for norm in norms if norm.training]
    assert training == [block.adaptformer.norm for block in teacher.blocks]


def steps_of(names, cuts):
    """Tensors of an adapter after two steps on this process's part of four images."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    distributed = dist.is_initialized()
    rank = dist.get_rank() if distributed else 0
    own = slice(cuts[rank], cuts[rank + 1])
    torch.manual_seed(0)
    if "blocks" in names:
        module = build_backbone("resnet18", width=0.125)
    else:
        module = timm.create_model("deit3_small_patch16_224", img_size=SIDE, **SMALL)
    module = add_adapter(module, Adapter(name=names), image_size=SIDE).double()
    model = DistributedDataParallel(use_global_batch_norm(module)) if distributed else module
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        features = model.train()(images()[own].double())
        target = torch.linspace(-1, 1, features.shape[1], dtype=torch.float64)
        (features - target).square().mean().backward()
        optimizer.step()
    return adapter_tensors(module)


@pytest.mark.parametrize("names", [("lora", "adaptformer"), ("norm", "blocks")])
def test_an_adapter_trains_on_two_processes_as_on_one(two_processes, names) -> None:
    whole = steps_of(names, [0, 4])
    assert len(whole) > 10
    for found in two_processes(steps_of, names, [0, 2, 4]):
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


def test_lora_is_w_plus_b_times_a() -> None:
    module = adapted("lora", rank=2)
    train(module)
    layer = module.blocks[3].attn.qkv
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = merged(module).blocks[3].attn.qkv.weight
    torch.testing.assert_close(weight, layer.base_layer.weight + b @ a)
    assert (a.shape, b.shape) == ((2, 192), (576, 2))


def test_statistics_of_trained_norms_are_saved_with_them() -> None:
    names = set(adapter_tensors(adapted("norm", "resnet18")))
    assert {"bn1.weight", "bn1.running_mean", "layer4.1.bn2.running_var"} <= names
    assert not any("conv" in name for name in names)


@pytest.mark.parametrize(
    ("name", "model", "settings", "sentence"),
    [
        ("lora", "resnet18", {}, "ScaledResNet has no layer named qkv"),
        ("adaptformer", "resnet18", {}, "no blocks whose MLP follows a LayerNorm"),
        ("adaptformer", "timm:swinv2_tiny_window8_256", {}, "no blocks whose MLP follows"),
        ("blocks", "resnet18", {"blocks": 5}, r"blocks is 5, but ScaledResNet has 4"),
        ("blocks", "torchvision:squeezenet1_1", {}, "the order of the layers of SqueezeNet"),
        ("norm", "torchvision:squeezenet1_1", {}, "has no norm to train"),
    ],
)
def test_an_adapter_that_a_network_has_no_place_for_is_refused(
    name, model, settings, sentence
) -> None:
    side = 64 if ":" in model else SIDE
    module = build_backbone(model, image_size=side)
    with pytest.raises(ValueError, match=sentence) as refused:
        add_adapter(module, Adapter(name=name, **settings), image_size=side)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "layers", "place"),
    [
        ("torchvision", "out_proj", "encoder.layers.encoder_layer_0.self_attention.out_proj"),
        ("timm", "qkv", "blocks.0.attn.qkv"),  # BEiT adds its biases to the product itself
    ],
)
def test_lora_on_a_layer_that_is_not_called_is_refused_by_its_name(model, layers, place) -> None:
    module = tiny_torchvision() if model == "torchvision" else tiny_beit()
    settings = Adapter(name="lora", layers=(layers,))
    with pytest.raises(ValueError, match=f"lora on {place} would get no gradient") as refused:
        add_adapter(module, settings, image_size=SIDE)
    assert "\n" not in str(refused.value)


def tiny_torchvision():
    """A ViT whose attention reads the weights of ``out_proj``."""
    module = VisionTransformer(SIDE, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    module.heads = nn.Identity()
    return module


def tiny_beit():
    return timm.create_model("beit_base_patch16_224", img_size=SIDE, **SMALL)


def test_lora_on_layers_that_are_called_gets_gradients_and_to_try_it_changes_nothing() -> None:
    module = tiny_torchvision()
    add_adapter(module, Adapter(name="lora", layers=("0", "3")), image_size=SIDE)
    assert not any(m._forward_pre_hooks for m in module.modules() if hasattr(m, "lora_A"))
    module(images()).square().sum().backward()
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert len(trained) == 8
    assert all(p.grad is not None for p in trained.values())
    norms = adapted("lora", "resnet18", layers=("conv1",))
    before = backbone("resnet18").state_dict()
    assert all(torch.equal(norms.state_dict()[n], before[n]) for n in before if "running" in n)


def test_a_missing_library_is_named_with_its_command(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[lora\]'"):
        adapted("lora")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "holds no adapter"),
        ({"adapter": "{}"}, "holds no adapter"),
        ({"adapter": '{"init": "x", "name": ["bias"]}'}, "the adapter of another network"),
    ],
)
def test_a_file_that_is_no_adapter_of_this_network_is_refused(content, sentence, tmp_path) -> None:
    save_file({"x.bias": torch.zeros(3)}, tmp_path / "a.safetensors", content or None)
    with pytest.raises(ValueError, match=sentence):
        load_adapter(backbone(), tmp_path / "a.safetensors", image_size=SIDE)


def test_a_setting_that_is_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is read by lora only"):
        Adapter(name="norm", rank=4)
    assert math.isclose(Adapter(name="lora").rank, 8)
