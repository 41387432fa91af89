"""Optimizers over groups of parameters, and the learning rate as a pure function of the step."""

import math
from collections import defaultdict
from typing import Any

import torch
from lightly.utils.lars import LARS
from torch import nn

from sslgh.models.layers import HEADS, layers_by_name
from sslgh.recipe import Optim


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """SGD, AdamW or LARS over groups of parameters that share weight decay and learning-rate scale.

    Biases, norm parameters (one axis) and what the backbone lists as ``no_weight_decay`` (class token,
    positions) are decayed only by SGD and AdamW with ``decay_all``, as in the GH code. LARS neither
    decays nor rescales them (SimCLR, BYOL). Frozen parameters stay out.

    Raises:
        ValueError: If there is a ``layer_decay`` and the order of the backbone's layers is not known.
    """
    exempt, no_decay = optim.name == "lars" or not optim.decay_all, set()
    scales = {} if optim.layer_decay is None else _lr_scales(model, optim.layer_decay)
    backbone: Any = getattr(model, "backbone", None)
    if hasattr(backbone, "no_weight_decay"):
        no_decay = {f"backbone.{name}" for name in backbone.no_weight_decay()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = exempt and (parameter.ndim <= 1 or name in no_decay)
            groups[scales.get(name, 1.0), free].append(parameter)
    ordered = [{"params": groups[key], **_group_settings(optim, *key)} for key in sorted(groups)]
    if optim.name == "adamw":
        return torch.optim.AdamW(ordered, lr=optim.lr)
    kind: Any = LARS if optim.name == "lars" else torch.optim.SGD
    nesterov = {"nesterov": True} if optim.nesterov and optim.name == "sgd" else {}
    made: torch.optim.Optimizer = kind(ordered, lr=optim.lr, momentum=optim.momentum, **nesterov)
    return made


def _group_settings(optim: Optim, scale: float, free: bool) -> dict[str, float]:
    decay = 0.0 if free else optim.weight_decay
    if optim.name == "lars" and not free:
        # lightly's LARS takes a decay of 0 for "do not rescale"; this one is lost in rounding.
        decay = decay or torch.finfo(torch.float32).tiny
    scaled = {} if optim.layer_decay is None else {"lr_scale": scale}
    return {"weight_decay": decay} | scaled


def _lr_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factors of the learning rate by parameter name; parameters not listed have the full rate.

    A layer of the backbone has ``layer_decay`` to the power of its distance from the heads (BEiT,
    arXiv:2106.08254).
    """
    try:
        layers = layers_by_name(model.get_submodule("backbone"))
    except ValueError as error:
        raise ValueError(f"optim.layer_decay: {error}, or leave it out") from None
    heads = layers.pop(HEADS)
    return {f"backbone.{name}": layer_decay ** (heads - layer) for name, layer in layers.items()}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, times its ``lr_scale`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(
    step: int, optim: Optim, *, steps_per_epoch: int, epochs: int, gh_start: int | None
) -> float:
    """Learning rate of an optimizer step.

    Linear warm-up from 0, then a cosine to ``lr_end``; or, for ``gh-two-stage`` (the GH code),
    a cosine to ``lr_mid`` at epoch ``gh_start``, where GH begins, and a second one to ``lr_end``;
    or, for ``step``, the peak times ``decay`` at each milestone. Steps count from 0.

    Examples:
        >>> optim = Optim(lr=1.0, warmup_epochs=1, lr_end=0.0)
        >>> at = lambda step: learning_rate(step, optim, steps_per_epoch=2, epochs=3, gh_start=None)
        >>> [round(at(step), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warmup, total = optim.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in optim.milestones)
        return optim.lr * float(optim.decay**passed)
    if optim.schedule == "cosine" or gh_start is None:
        return _cosine(step, warmup, total, optim.lr, optim.lr_end)
    return _two_cosines(step, (warmup, gh_start * steps_per_epoch, total), optim)


def _two_cosines(step: int, bounds: tuple[int, int, int], optim: Optim) -> float:
    start, middle, stop = bounds
    if step < middle:
        return _cosine(step, start, middle, optim.lr, optim.lr_mid)
    return _cosine(step, middle, stop, optim.lr_mid, optim.lr_end)


def _cosine(step: int, start: int, stop: int, high: float, low: float) -> float:
    progress = (step - start) / max(stop - start, 1)
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
