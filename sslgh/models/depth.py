"""How deep each parameter of a backbone lies, for learning rates that fall with the distance from the heads."""

import re
from types import SimpleNamespace
from typing import Any

from torch import nn


def layer_of_parameters(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each parameter, from 0 for the stem, and that of the heads behind the backbone.

    A layer is what timm takes for one: the stem, and each block. In our ResNets and torchvision's it is a
    stage. What follows the last block belongs to it or, where timm has it so (ConvNeXt), to the heads.

    Args:
        backbone: Of `build_backbone`.

    Returns:
        Layers by parameter name, and the layer of the heads, one more than the last block's.

    Raises:
        ValueError: If the order of its layers is not known.
    """
    names = [name for name, _ in backbone.named_parameters()]
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is not None:
        return _by_timm(names, matcher(coarse=False))
    stages = {name: re.match(r"layer(\d)\.", name) for name in names}
    if not any(stages.values()):
        raise ValueError(
            f"optim.layer_decay: the order of the layers of {type(backbone).__name__} is not known; leave it "
            f"out, or use a ResNet, or a backbone of timm"
        )
    found = {name: int(stage[1]) if stage else 0 for name, stage in stages.items()}
    return found, max(found.values()) + 1


def _by_timm(names: list[str], matcher: Any) -> tuple[dict[str, int], int]:
    from timm.models import group_parameters  # noqa: PLC0415 - an optional extra

    # timm puts names that it does not know, a classifier's, behind the last block.
    heads = "the heads"
    named: Any = SimpleNamespace(
        named_parameters=lambda: [(name, None) for name in (*names, heads)]
    )
    found = group_parameters(named, matcher, reverse=True)
    return {name: found[name] for name in names}, found[heads]
