"""bf16 on the CPU: what is let through has the right gradient, what has not is refused."""

import pytest
import torch
from torch import nn

from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.small_maps import refuse_small_maps
from sslgh.recipe import RecipeError


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
