"""The order of a backbone's layers, by the names of its parameters."""

import re
from types import SimpleNamespace
from typing import Any

from torch import nn

# Stands for all parameters behind the backbone.
HEADS = "the heads"


def layers_by_name(backbone: nn.Module) -> dict[str, int]:
    """Layer of each parameter of a backbone, from 0 for the stem, and of ``HEADS`` behind it.

    A layer is timm's: the stem, and each block; in our ResNets and torchvision's a stage. The last norm
    belongs to the last block or, where timm has it so (ConvNeXt), to the heads. timm's
    `param_groups_layer_decay` itself does not fit: it sees no heads outside of the backbone and keeps
    a group per layer where the scales are equal.

    Raises:
        ValueError: If the order of its layers is not known.
    """
    names = [name for name, _ in backbone.named_parameters()] + [HEADS]
    if hasattr(backbone, "group_matcher"):
        from timm.models import group_parameters  # noqa: PLC0415 - importing all of timm takes a second

        # timm puts names that no pattern matches, a classifier's, behind the last block.
        named: Any = SimpleNamespace(named_parameters=lambda: [(name, None) for name in names])
        matcher: Any = backbone.group_matcher
        layers: dict[str, int] = group_parameters(named, matcher(coarse=False), reverse=True)
        return layers
    stages = {n: int(stage[1]) for n in names if (stage := re.match(r"layer(\d)\.", n))}
    if not stages:
        raise ValueError(
            f"the order of the layers of {type(backbone).__name__} is not known; use a ResNet, or a backbone of timm"
        )
    return dict.fromkeys(names, 0) | stages | {HEADS: max(stages.values()) + 1}
