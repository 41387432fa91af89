"""Optimizers by name, with the parameters that a paper leaves out of weight decay or slows down."""

from typing import Any

import torch
from lightly.utils.lars import LARS
from torch import nn

from sslgh.models.depth import layer_of_parameters
from sslgh.recipe import Optim


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """SGD, AdamW or LARS over groups of parameters: decayed or not, and with a rate of their own.

    Biases and norm parameters (one axis), and what a transformer names beside them (class token,
    positions), are decayed with SGD and AdamW where ``decay_all`` is set, as the GH code does. LARS
    neither decays nor rescales them (SimCLR, BYOL).

    With ``layer_decay`` a layer of the backbone has the rate times ``layer_decay`` to the number of layers
    up to the heads, which have the whole (BEiT, arXiv:2106.08254, for ViT; `layer_of_parameters`).

    Args:
        model: With a ``backbone``, where there is a ``layer_decay``; frozen parameters stay out.
        optim: The settings.

    Raises:
        ValueError: If the layers of the backbone are not known.
    """
    exempt = optim.name == "lars" or not optim.decay_all
    spared, scales = _spared(model), _scales(model, optim.layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in named:
        free = exempt and (parameter.ndim <= 1 or name in spared)
        key = (scales.get(name, 1.0), free)
        groups.setdefault(key, {"params": []})["params"].append(parameter)
    ordered = [groups[key] | _group_settings(optim, *key) for key in sorted(groups)]
    if optim.name == "adamw":
        return torch.optim.AdamW(ordered, lr=optim.lr)
    kind = LARS if optim.name == "lars" else torch.optim.SGD
    options = {"nesterov": True} if optim.nesterov and optim.name == "sgd" else {}
    optimizer: torch.optim.Optimizer = kind(
        ordered, lr=optim.lr, momentum=optim.momentum, **options
    )
    return optimizer


def _group_settings(optim: Optim, scale: float, free: bool) -> dict[str, float]:
    decay = 0.0 if free else optim.weight_decay
    if optim.name == "lars" and not free:
        # lightly's LARS takes a decay of 0 for "do not rescale"; this one is lost in rounding.
        decay = decay or torch.finfo(torch.float32).tiny
    scaled = {} if optim.layer_decay is None else {"lr_scale": scale}
    return {"weight_decay": decay} | scaled


def _spared(model: nn.Module) -> set[str]:
    """Parameters of several axes that the backbone wants to keep from weight decay, by their whole names."""
    backbone = getattr(model, "backbone", None)
    named = getattr(backbone, "no_weight_decay", None)
    return set() if named is None else {f"backbone.{name}" for name in named()}


def _scales(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    """Factors of the rate by whole names; what is not there has the whole rate."""
    if layer_decay is None:
        return {}
    backbone = model.get_submodule("backbone")
    layers, heads = layer_of_parameters(backbone)
    return {f"backbone.{name}": layer_decay ** (heads - layer) for name, layer in layers.items()}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
