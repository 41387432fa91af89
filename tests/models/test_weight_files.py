"""Weights from files of other libraries land in the right tensors, and what does not fit is named."""

import argparse
import copy
import os

import pytest
import timm
import torch
from lightly.models.modules import SimCLRProjectionHead
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from sslgh.models import build_backbone
from sslgh.models.adapters import add_adapter
from sslgh.models.weight_files import load_weights, read_tensors
from sslgh.recipe.adapter import Adapter

TINY = {"width": 0.125, "stem": "imagenet"}


def trained() -> nn.Module:
    """A small ResNet whose every tensor is its own."""
    torch.manual_seed(1)
    backbone = build_backbone("resnet18", **TINY)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return backbone


def other() -> nn.Module:
    torch.manual_seed(2)
    return build_backbone("resnet18", **TINY)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def moco(state):
    """A checkpoint of MoCo v2: query and key encoder, each with its head."""
    key = {name: value + 1 for name, value in state.items()}
    tensors = prefixed(state, "module.encoder_q.") | prefixed(key, "module.encoder_k.")
    tensors |= {"module.encoder_q.fc.0.weight": torch.ones(3, 3), "module.queue": torch.ones(2, 2)}
    return {"epoch": 3, "arch": "resnet18", "state_dict": tensors, "optimizer": {"state": {}}}


def dino(state):
    """A checkpoint of DINO: student, teacher and the command line as a Namespace."""
    student = prefixed({name: value + 1 for name, value in state.items()}, "module.backbone.")
    teacher = prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.ones(2, 2)}
    return {"student": student, "teacher": teacher, "args": argparse.Namespace(lr=0.1)}


def solo(state):
    """A checkpoint of solo-learn's Lightning module, with its momentum copy first."""
    momentum = prefixed({name: value + 1 for name, value in state.items()}, "momentum_backbone.")
    return {"state_dict": momentum | prefixed(state, "backbone."), "epoch": 1}


def lightly_of(backbone, *, heavy):
    """Lightly's layout: the children of a network numbered in an ``nn.Sequential``."""
    children = [child for child in backbone.children() if child.state_dict() or not heavy]
    return {"state_dict": prefixed(nn.Sequential(*children).state_dict(), "backbone.")}


LAYOUTS = {
    "plain": lambda net: net.state_dict(),
    "module": lambda net: prefixed(net.state_dict(), "module."),
    "moco": lambda net: moco(net.state_dict()),
    "dino": lambda net: dino(net.state_dict()),
    "solo": lambda net: solo(net.state_dict()),
    "lightly-torchvision": lambda net: lightly_of(net, heavy=False),
    "lightly-own": lambda net: lightly_of(net, heavy=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_outputs_of_the_network_that_was_saved(tmp_path, layout) -> None:
    source, target = trained().eval(), other().eval()
    torch.save(LAYOUTS[layout](source), tmp_path / "x.pth")
    report = load_weights(target, tmp_path / "x.pth")
    assert report.share == 1
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


def test_torchvisions_own_file_loads_and_ours_loads_there(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = resnet18().eval()
    save_file(theirs.state_dict(), tmp_path / "r18.safetensors")
    ours = build_backbone("resnet18", stem="imagenet").eval()
    report = load_weights(ours, tmp_path / "r18.safetensors")
    assert set(report.left_over) == {"fc.weight", "fc.bias"}
    back = copy.deepcopy(theirs)
    back.fc = nn.Identity()
    back.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), back(x))


class LightlysExample(nn.Module):
    """SimCLR as a user of lightly writes it: the children of a network in a row, and lightly's head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet18().children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 16, 8)


def test_a_file_of_plain_lightly_code_loads_and_ours_loads_there(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = LightlysExample().eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = build_backbone("resnet18", stem="imagenet").eval()
    report = load_weights(ours, tmp_path / "x.pth")
    assert report.share == 1
    assert all(name.startswith("projection_head.") for name in report.left_over)
    back = resnet18()
    back.fc = nn.Identity()
    back.load_state_dict(ours.state_dict(), strict=True)
    again, x = LightlysExample().eval(), torch.rand(1, 3, 64, 64)
    again.backbone.load_state_dict(nn.Sequential(*list(back.children())[:-1]).state_dict())
    with torch.no_grad():
        assert torch.equal(ours(x), theirs.backbone(x).flatten(1))
        assert torch.equal(again.backbone(x), theirs.backbone(x))


def test_timms_own_file_loads_and_ours_loads_there(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = build_backbone("timm:test_resnet", image_size=32).eval()
    report = load_weights(ours, tmp_path / "x.pth")
    assert set(report.left_over) == {"fc.weight", "fc.bias"}
    back = timm.create_model("test_resnet", num_classes=0).eval()
    back.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        assert torch.equal(ours(x), expected)
        assert torch.equal(back(x), expected)


@pytest.mark.parametrize(
    ("name", "saved", "asked", "sentence"),
    [
        (
            "resnet18",
            {"width": 0.25},
            {"width": 0.125},
            r"\(8, 3, 3, 3\) in the backbone and \(16,",
        ),
        ("vit_tiny", {"patch": 4}, {"patch": 2}, r"in the backbone and \(.*, 4, 4\)|\(1, 5, 192\)"),
    ],
)
def test_another_width_or_patch_is_refused_with_both_shapes(
    name, saved, asked, sentence, tmp_path
) -> None:
    torch.save(build_backbone(name, **saved, image_size=8).state_dict(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=sentence) as refused:
        load_weights(build_backbone(name, **asked, image_size=8), tmp_path / "x.pt")
    assert "\n" not in str(refused.value)


def test_the_report_says_what_was_loaded_what_is_missing_and_what_is_left_over(tmp_path) -> None:
    state = prefixed(trained().state_dict(), "encoder.")
    del state["encoder.conv1.weight"]
    state["encoder.bn1.weight"] = torch.ones(3)
    torch.save(state | {"encoder.fc.weight": torch.ones(1)}, tmp_path / "x.pt")
    target = other()
    before = target.conv1.weight.clone()
    report = load_weights(target, tmp_path / "x.pt", least=0.8)
    total = sum(not name.endswith("num_batches_tracked") for name in target.state_dict())
    assert str(report) == (
        f"{tmp_path / 'x.pt'}: {total - 2} of {total} tensors loaded under 'encoder.'; missing: conv1.weight; "
        "of another shape: bn1.weight; left over: encoder.fc.weight"
    )
    assert torch.equal(target.conv1.weight, before)


def test_a_file_without_counters_of_batches_is_whole(tmp_path) -> None:
    state = trained().state_dict()
    kept = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(kept, tmp_path / "x.pt")
    assert load_weights(other(), tmp_path / "x.pt").share == 1


def test_another_architecture_is_refused_with_a_tensor_and_both_shapes(tmp_path) -> None:
    torch.save(build_backbone("resnet34", width=0.25).state_dict(), tmp_path / "x.pt")
    target = other()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(
        ValueError, match=r"fits .* of the backbone's .* tensors: .* is "
    ) as refused:
        load_weights(target, tmp_path / "x.pt")
    assert "model.backbone" in str(refused.value)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_a_share_that_is_asked_for_is_enough(tmp_path) -> None:
    state = trained().state_dict()
    half = dict(list(state.items())[: len(state) // 2])
    torch.save(half, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="fits"):
        load_weights(other(), tmp_path / "x.pt")
    assert 0.4 < load_weights(other(), tmp_path / "x.pt", least=0.4).share < 0.6


@pytest.mark.parametrize("least", [0.9, 0.99, 1])
def test_one_tensor_of_another_shape_is_refused_unless_less_is_asked_for(tmp_path, least) -> None:
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "x.pt")  # its stem is 7 x 7
    target = build_backbone("resnet18", stem="cifar")
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 3, 3, 3\) in the backbone and"):
        load_weights(target, tmp_path / "x.pt", least=least)
    assert load_weights(target, tmp_path / "x.pt", least=0.89).misfits == ("conv1.weight",)


def test_adaptformers_in_a_file_are_not_dropped(tmp_path) -> None:
    source = build_backbone("vit_tiny", image_size=8)
    adapted = add_adapter(copy.deepcopy(source), Adapter(name="adaptformer"), image_size=8)
    torch.save(adapted.state_dict(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"holds AdaptFormers, .* set model.init to the run dir"):
        load_weights(source, tmp_path / "x.pt", least=0.1)


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_pickle_is_named_and_never_executed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "x.pth")
    with pytest.raises(ValueError, match="could run code and are not loaded; save its state dict"):
        read_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half a zip"])
def test_what_is_no_file_of_weights_is_refused_in_a_sentence(tmp_path, suffix, content) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as weights") as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_one_without_tensors_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_tensors(tmp_path / "none.pt")
    torch.save({"lr": 0.1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_tensors(tmp_path / "x.pt")
