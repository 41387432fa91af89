"""Adam for many heads in one tensor, each with its own learning rate and weight decay.

Shapes: S seeds, H heads.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of the paper, and of torch.optim.Adam


class HeadwiseAdam:
    """Adam (arXiv:1412.6980) with L2 in the gradient, as `torch.optim.Adam` has it, for stacked heads.

    `torch.optim.Adam` takes one learning rate and decay a parameter group, so that 48 heads would
    be 48 groups: a step of 10 classes and 128 features then takes 15 times as long, as long as
    all else in the training (`scripts/bench/heads.py`).

    Args:
        parameters: Tensors (S, H, ...).
        lr: Shape (H,).
        weight_decay: For each parameter, shape (H,).
    """

    def __init__(
        self, parameters: Sequence[Tensor], *, lr: Tensor, weight_decay: Sequence[Tensor]
    ) -> None:
        self.parameters = list(parameters)
        self.lr = [_beside(lr, p) for p in self.parameters]
        self.weight_decay = [
            _beside(decay, p) if decay.any() else None
            for decay, p in zip(weight_decay, self.parameters, strict=True)
        ]
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], *, factor: float = 1.0) -> None:
        """One step with the learning rates times ``factor``; the gradients are used up."""
        self.steps += 1
        root = math.sqrt(1 - BETA2**self.steps)
        size = factor * root / (1 - BETA1**self.steps)
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            decay = self.weight_decay[i]
            if decay is not None:
                gradient.addcmul_(parameter, decay)
            self.first[i].lerp_(gradient, 1 - BETA1)
            self.second[i].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            # In the memory of the gradient: fresh memory for megabytes costs more than the arithmetic.
            update = torch.sqrt(self.second[i], out=gradient).add_(EPSILON * root)
            torch.div(self.first[i], update, out=update)
            parameter.addcmul_(update, self.lr[i], value=-size)


def _beside(values: Tensor, parameter: Tensor) -> Tensor:
    """(H,) to what multiplies (S, H, ...)."""
    return values.view(-1, *(1 for _ in parameter.shape[2:])).to(parameter)
