import pytest
import torch
from torch import nn

from sslgh.engine.build import refuse_small_maps
from sslgh.engine.launch import (
    DeterminismError,
    determinism,
    has_accelerator,
    init_accelerator,
)
from sslgh.engine.pretraining import pretrain
from sslgh.recipe import RecipeError


def test_the_switch_holds_within_and_not_beyond() -> None:
    with determinism():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_named_with_the_way_out() -> None:
    fault = RuntimeError(
        "put_ does not have a deterministic implementation, but you set. You can turn it off"
    )

    def raise_inside() -> None:
        with determinism():
            raise fault

    with pytest.raises(DeterminismError, match=r"put_ does not .*; set train.deterministic: false"):
        raise_inside()
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass_through() -> None:
    def raise_inside() -> None:
        with determinism():
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        raise_inside()


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_gradients_that_are_let_through_are_those_of_float64(kernel, stride, side) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
    refuse_small_maps(layer)
    images = torch.randn(16, 32, side, side)
    if kernel > 1 and stride > 1 and side == 1:
        with pytest.raises(RecipeError, match=r"train\.precision: bf16 on the CPU takes wrong"):
            layer(images)
        layer.eval()(images)
        return
    with torch.autocast("cpu", torch.bfloat16):
        answer = layer(images)
    (found,) = torch.autograd.grad(answer.float().square().sum(), layer.weight)
    layer.double()
    (right,) = torch.autograd.grad(layer(images.double()).square().sum(), layer.weight)
    assert (found - right).abs().max() < 0.05 * right.abs().max()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_on_images_that_shrink_to_a_pixel_wants_fp32(tiny, precision) -> None:
    recipe = tiny("data.size=4", f"train.precision={precision}", "train.epochs=1")
    if precision == "fp32":
        pretrain(recipe, init_accelerator())
        return
    with pytest.raises(RecipeError, match=r"raise data\.size"):
        pretrain(recipe, init_accelerator())


def test_mps_is_used_by_a_single_process(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert has_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")  # it has no collectives
    assert not has_accelerator()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert has_accelerator()
