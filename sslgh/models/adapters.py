"""Adapters: few weights of a pretrained backbone are trained, all others and their batch statistics stay.

Shapes: N images, T tokens, F features, W width of a bottleneck.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sslgh.models.layers import HEADS, layers_by_name
from sslgh.models.library_backbones import UNFIT, try_images
from sslgh.recipe.adapter import Adapter

# Norm and MLP of a block, as timm and torchvision name them.
BLOCKS = (("norm2", "mlp"), ("ln_2", "mlp"))
# Layer scales of an MLP that are no modules: in BEiT, CaiT and EVA, and in XCiT.
SCALES = ("gamma_2", "gamma2")
# Attribute of the blocks of XCiT that give their MLP the class token alone.
CLASS_TOKEN = "tokens_norm"
# Width of an AdaptFormer where there are no classes.
USUAL_WIDTH = 8
# What an AdaptFormer is called in its block.
ADAPTFORMER = "adaptformer"


class AdaptFormer(nn.Module):
    """A bottleneck parallel to an MLP: s * up(relu(down(LN x))), (N, T, F) to (N, T, F).

    After LIFT's code (arXiv:2309.10019; the module is of arXiv:2205.13535): s is learned and starts at 1, ``up``
    starts at 0, so that a network with new ones computes what it did.

    Args:
        features: F.
        width: W.

    Examples:
        >>> AdaptFormer(8, 2)(torch.ones(1, 3, 8)).abs().sum().item()
        0.0
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.down, self.up = nn.Linear(features, width), nn.Linear(width, features)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)
        self.seen: Tensor | None = None  # input of the block's norm, during its forward

    def forward(self, x: Tensor) -> Tensor:
        """What is added to what the block computes."""
        added: Tensor = self.scale * self.up(self.down(self.norm(x)).relu())
        return added


def adaptformer_width(num_classes: int | None, blocks: int) -> int:
    """Width W of LIFT's code: 2^floor(log2(classes / (2 blocks))), at least 1; `USUAL_WIDTH` without classes.

    Examples:
        >>> [adaptformer_width(classes, 12) for classes in (10, 100, 1000, 8142, None)]
        [1, 4, 32, 256, 8]
    """
    if num_classes is None:
        return USUAL_WIDTH
    return 1 << max(0, math.floor(math.log2(num_classes / (2 * blocks))))


def add_adapter(
    backbone: nn.Module, settings: Adapter, *, image_size: int, num_classes: int | None = None
) -> nn.Module:
    """Freeze a backbone but for an adapter; changed in place.

    A module without trained weights stays in evaluation mode while the backbone trains: batch statistics of frozen
    norms do not move, dropout and stochastic depth are off. Norms that are trained take those of the batch.

    Args:
        backbone: (N, 3, S, S) to (N, F), pretrained.
        settings: What is trained.
        image_size: S (pixels).
        num_classes: Number of classes, for the width of an AdaptFormer; None without labels.

    Returns:
        The backbone.

    Raises:
        ValueError: If the backbone lacks what the adapter trains, never calls a layer with LoRA, or LoRA's library is
            missing.
    """
    backbone.requires_grad_(requires_grad=False)
    if "lora" in settings.name:  # first: it turns gradients off
        _add_lora(backbone, settings)
        _check_lora(backbone, image_size)
    if "adaptformer" in settings.name:
        count = len(list(_blocks(backbone)))
        width = settings.width or adaptformer_width(num_classes, max(count, 1))
        add_adaptformers(backbone, width, image_size=image_size)
    for name in settings.name:
        if name in CHOICES and not _train(CHOICES[name](backbone, settings)):
            raise ValueError(
                f"model.adapter: {type(backbone).__name__} has no {name} to train; choose another"
            )
    held = frozenset(name for name, module in backbone.named_modules() if not any(_trained(module)))
    backbone.register_forward_pre_hook(partial(_evaluate_frozen, held))
    return backbone


def _trained(module: nn.Module) -> Iterator[bool]:
    return (parameter.requires_grad for parameter in module.parameters())


# By name, since global batch norms take the place of others, and teachers are copies.
def _evaluate_frozen(held: frozenset[str], backbone: nn.Module, _: tuple[Tensor, ...]) -> None:
    """Put modules without trained weights into evaluation mode."""
    if backbone.training:
        for name, module in backbone.named_modules():
            if name in held:
                module.training = False


def _train(parameters: list[nn.Parameter]) -> bool:
    """Give parameters gradients; whether there are any."""
    for parameter in parameters:
        parameter.requires_grad_()
    return bool(parameters)


def _biases(backbone: nn.Module, _: Adapter) -> list[nn.Parameter]:
    return [p for name, p in backbone.named_parameters() if name.endswith("bias")]


def _norms(backbone: nn.Module, _: Adapter) -> list[nn.Parameter]:
    norms = [m for m in backbone.modules() if "norm" in type(m).__name__.lower()]
    return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


def _last_blocks(backbone: nn.Module, settings: Adapter) -> list[nn.Parameter]:
    try:
        layers = layers_by_name(backbone)
    except ValueError as error:
        raise ValueError(f"model.adapter: {error}") from None
    number = layers[HEADS]
    if settings.blocks >= number:  # layer 0 is the stem
        raise ValueError(
            f"model.adapter.blocks is {settings.blocks}, but {type(backbone).__name__} has {number - 1}"
        )
    first = number - settings.blocks
    return [p for name, p in backbone.named_parameters() if layers[name] >= first]


CHOICES: dict[str, Callable[[nn.Module, Adapter], list[nn.Parameter]]] = {
    "bias": _biases,
    "norm": _norms,
    "blocks": _last_blocks,
}


def _add_lora(backbone: nn.Module, settings: Adapter) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - takes seconds
    except ImportError:
        raise ValueError(
            "model.adapter: lora needs the package peft, which is not installed; pip install '.[lora]'"
        ) from None
    names = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
    found = [name for name in settings.layers if name in names]
    if not found:
        raise ValueError(
            f"model.adapter: {type(backbone).__name__} has no layer named {' or '.join(settings.layers)}; set "
            "model.adapter.layers, or choose another adapter"
        )
    config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=found)
    try:
        inject_adapter_in_model(config, backbone)
    except ValueError as error:
        raise ValueError(f"model.adapter: {str(error).splitlines()[0]}") from None


def _check_lora(backbone: nn.Module, side: int) -> None:
    """Refuse layers that the network never calls, since it reads their weights: LoRA would get no gradient."""
    layers = {name: m for name, m in backbone.named_modules() if hasattr(m, "lora_A")}  # peft's
    called: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in layers.values()]
    try_images(backbone, side)
    for hook in hooks:
        hook.remove()
    unused = [name for name, layer in layers.items() if layer not in called]
    if unused:
        raise ValueError(
            f"model.adapter: lora on {unused[0]} would get no gradient, since {type(backbone).__name__} reads the weights "
            "of that layer without calling it; set other model.adapter.layers, or choose another adapter"
        )


def _blocks(backbone: nn.Module) -> Iterator[tuple[nn.Module, nn.LayerNorm, nn.Module]]:
    """Blocks with the norm before their MLP, and their MLP or its layer scale."""
    for block in [m for m in backbone.modules() if not hasattr(m, CLASS_TOKEN)]:
        for norm, mlp in BLOCKS:
            before, after = getattr(block, norm, None), getattr(block, mlp, None)
            if isinstance(before, nn.LayerNorm) and isinstance(after, nn.Module):
                yield block, before, getattr(block, "ls2", after)  # behind a layer scale


def has_mlp_blocks(backbone: nn.Module) -> bool:
    """Whether a backbone has blocks that take an AdaptFormer."""
    return next(_blocks(backbone), None) is not None


def add_adaptformers(backbone: nn.Module, width: int, *, image_size: int) -> None:
    """Give every block an `AdaptFormer` of a width, under the name ``adaptformer``.

    The block computes x + MLP(LN x) + AdaptFormer(x), with MLP including its layer scale if there is one.

    Raises:
        ValueError: If no block has an MLP after a LayerNorm, or they have one already.
    """
    blocks = list(_blocks(backbone))
    if any(hasattr(block, ADAPTFORMER) for block, *_ in blocks):
        raise ValueError(
            "model.adapter: the weights have an AdaptFormer already; leave it out to train all, or choose another"
        )
    for block, norm, mlp in blocks:
        adapter = AdaptFormer(norm.normalized_shape[-1], width).to(norm.weight.device)
        setattr(block, ADAPTFORMER, adapter)
        norm.register_forward_pre_hook(partial(_remember, adapter))
        # A scale of 1e-5 after the sum would keep the adapter from learning.
        scaled = any(isinstance(getattr(block, name, None), nn.Parameter) for name in SCALES)
        (block if scaled else mlp).register_forward_hook(partial(_add, adapter))
    try:
        if blocks:
            try_images(backbone, image_size)
            return
    except UNFIT as error:  # its MLP comes before its norm, or its channels first
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
    else:
        reason = ""
    raise ValueError(
        f"model.adapter: {type(backbone).__name__} has no blocks whose MLP follows a LayerNorm{reason}, which adaptformer "
        "needs; choose lora, norm, bias or blocks"
    )


def _remember(adapter: AdaptFormer, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    adapter.seen = inputs[0]


def _add(adapter: AdaptFormer, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    seen, adapter.seen = adapter.seen, None
    if seen is None:
        raise ValueError("an MLP comes before its norm")
    if seen.shape != output.shape:
        raise ValueError("an MLP changes the shape of its input")
    added: Tensor = adapter(seen)
    return output + added


def adapter_card(backbone: nn.Module) -> dict[str, Any]:
    """What a card needs to rebuild an adapter that cannot be merged; empty without one."""
    widths = [m.down.out_features for m in backbone.modules() if isinstance(m, AdaptFormer)]
    return {ADAPTFORMER: widths[0]} if widths else {}


def merged(backbone: nn.Module) -> nn.Module:
    """A copy in which the terms of LoRA are added to the weights of their layers; an AdaptFormer stays."""
    backbone = deepcopy(backbone)
    for name, module in list(backbone.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):  # peft's
            layer: Any = module
            layer.merge()
            above, _, last = name.rpartition(".")
            setattr(backbone.get_submodule(above), last, layer.get_base_layer())
    return backbone


def adapter_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of a backbone that its adapter trains, batch statistics of its trained norms included."""
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    holders = {name.rpartition(".")[0] for name in trained}
    statistics = {
        name for name, _ in backbone.named_buffers() if name.rpartition(".")[0] in holders
    }
    return {
        name: value for name, value in backbone.state_dict().items() if name in trained | statistics
    }
