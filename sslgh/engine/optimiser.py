"""Optimisers by name, with the parameters that a paper leaves out of weight decay."""

from typing import Any

import torch
from lightly.utils.lars import LARS
from torch import nn

from sslgh.recipe import Optim


def build_optimiser(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """SGD, AdamW or LARS over two groups: decayed, and not.

    Biases and norm parameters (one axis) are decayed with SGD and AdamW where ``decay_all``
    is set, as the GH code does. LARS neither decays nor rescales them (SimCLR, BYOL).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    exempt = optim.name == "lars" or not optim.decay_all
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if not exempt or p.ndim > 1]},
        {"params": [p for p in parameters if exempt and p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    kind = LARS if optim.name == "lars" else torch.optim.SGD
    options = {"nesterov": True} if optim.nesterov and optim.name == "sgd" else {}
    optimiser: torch.optim.Optimizer = kind(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, **options
    )
    return optimiser


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = rate
