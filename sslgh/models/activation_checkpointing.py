"""Gradient checkpointing: activations that are computed again in the backward instead of kept.

The second forward must leave no trace: batch norms would count the same batch twice.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class CheckpointedStage(nn.Sequential):
    """Blocks in a row of which only the input is kept for the backward; (N, ...) -> (N, ...)."""

    grad_checkpointing = True  # timm's name for it

    def forward(self, input: Tensor) -> Tensor:
        """The blocks one after another."""
        result: Tensor = checkpoint(
            super().forward, input, use_reentrant=False, context_fn=self._contexts
        )
        return result

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of the first and the second forward."""
        return nullcontext(), _statistics_stand_still(self)


@contextmanager
def _statistics_stand_still(module: nn.Module) -> Iterator[None]:
    """Batch norms update copies of their buffers, which are thrown away."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    kept = [(norm, norm._buffers) for norm in norms]
    for norm, buffers in kept:
        norm._buffers = {
            name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()
        }
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers = buffers


def checkpoint_activations(backbone: nn.Module) -> nn.Module:
    """Let a backbone keep fewer activations; loss, gradients and running statistics do not change.

    ResNets (ours, torchvision's, timm's) keep the input of each stage; other backbones of timm that have
    no batch norm use timm's own checkpointing; a ViT keeps the input of each block.

    Args:
        backbone: A backbone of `build_backbone`; changed in place, parameter names stay.

    Returns:
        The backbone.

    Raises:
        ValueError: If it has neither stages ``layer1``, ``layer2``, ... nor timm's own way, or that one
            would count batch statistics twice.
    """
    stages = [
        (name, child)
        for name, child in backbone.named_children()
        if re.fullmatch(r"layer\d", name) and type(child) is nn.Sequential
    ]
    for name, stage in stages:
        setattr(backbone, name, CheckpointedStage(*stage))
    if stages:
        return backbone
    enable: Any = getattr(backbone, "set_grad_checkpointing", None)
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())
    if normed or enable is None:
        reason = "would count batch statistics twice" if normed else "is not known"
        raise ValueError(
            f"model.checkpointing {reason} in {type(backbone).__name__}; leave it out, or use a ResNet or a "
            f"ViT, Swin or ConvNeXt"
        )
    try:
        enable(True)
    except AssertionError as error:  # timm's way to say that there is none
        raise ValueError(f"model.checkpointing: {error}; leave it out") from None
    return backbone
