"""A fault of the CPU's bf16 convolutions, refused before it makes a gradient wrong."""

from typing import Any

from torch import Tensor, nn

from sslgh.recipe import RecipeError


def refuse_small_maps(module: nn.Module) -> None:
    """Have the convolutions of a module refuse what torch 2.15 takes a wrong weight gradient of.

    On the CPU in bf16 the gradient of a kernel of more than one pixel and stride 2, on maps of one pixel, holds
    memory that was never written: mostly numbers that look sound. Found by comparing with float64; float32,
    stride 1 and depthwise kernels are right.

    Args:
        module: Trained in bf16 on the CPU.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 and max(layer.kernel_size) > 1:
            layer.register_forward_pre_hook(_refuse)


def _refuse(layer: nn.Module, given: tuple[Any, ...]) -> None:
    images: Tensor = given[0]
    if layer.training and min(images.shape[-2:]) == 1:
        raise RecipeError(
            "train.precision: bf16 on the CPU takes wrong gradients where the maps of a layer are down to one pixel; "
            "set train.precision: fp32, or raise data.size (data.augment.local_size for local crops)"
        )
