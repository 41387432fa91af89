"""Many heads on the same features as one tensor: models, loss and optimizer.

Shapes: S seeds, H heads, N samples, F features, D embedding width, C classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.classify.ensemble import Classifier
from sslgh.functional.margin_rules import Margins

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of the paper, and of torch.optim.Adam


class Heads(nn.Module):
    """S x H linear classifiers, each on the features or on an embedding layer of its own.

    All heads of one seed start from the same weights, drawn as `torch.nn.Linear` draws them;
    the start of a seed does not depend on the other heads and seeds.

    Args:
        seeds: S; seed s draws from a generator seeded with s.
        heads: H.
        num_features: F.
        num_classes: C.
        width: D, the width of an embedding layer without bias; None: no such layer.
    """

    def __init__(
        self,
        seeds: int,
        heads: int,
        num_features: int,
        num_classes: int,
        *,
        width: int | None = None,
    ) -> None:
        super().__init__()
        starts = [_initial_head(seed, num_features, num_classes, width) for seed in range(seeds)]
        weight, bias, embedding = (
            torch.stack(parts)[:, None].repeat(1, heads, *(1 for _ in parts[0].shape))
            for parts in zip(*starts, strict=True)
        )
        self.weight = nn.Parameter(weight)  # (S, H, C, F or D)
        self.bias = nn.Parameter(bias)  # (S, H, C)
        self.embedding = None if width is None else nn.Parameter(embedding)  # (S, H, D, F)

    def embed(self, features: Tensor) -> Tensor | None:
        """Embeddings (S, H, D, N) of features (S, N, F), a batch per seed; None without an embedding layer."""
        return None if self.embedding is None else products(self.embedding, features)

    def classify(self, features: Tensor, embeddings: Tensor | None) -> Tensor:
        """Logits (S, H, C, N) of features (S, N, F) and the output of `embed`."""
        if embeddings is None:
            return products(self.weight, features) + self.bias[..., None]
        return self.weight @ embeddings + self.bias[..., None]


class Scales(nn.Module):
    """Learnable weight scaling (Kang et al., sec. 4.2, arXiv:1910.09217): one factor per class on trained heads.

    The bias is scaled with the weights, and the factors are not decayed: a decay would pull the
    trained head to zero instead of back to itself.

    Args:
        weight: Class weights, shape (S, H, C, F); not trained.
        bias: Shape (S, H, C); not trained.
    """

    embedding = None

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones_like(bias))
        self._weight, self._bias = weight, bias

    @property
    def weight(self) -> Tensor:
        """Scaled class weights (S, H, C, F)."""
        return self.scale[..., None] * self._weight

    @property
    def bias(self) -> Tensor:
        """Scaled biases (S, H, C)."""
        return self.scale * self._bias

    def embed(self, features: Tensor) -> None:
        """None: there is no embedding layer."""

    def classify(self, features: Tensor, embeddings: Tensor | None) -> Tensor:
        """Logits (S, H, C, N) of features (S, N, F)."""
        logits = products(self._weight, features) + self._bias[..., None]
        return self.scale[..., None] * logits


def products(weight: Tensor, features: Tensor) -> Tensor:
    """Every head's matrix of a seed in one product: (S, H, C, F) and (S, N, F) to (S, H, C, N).

    Samples come last: the gradient then has the memory layout of the weights, and the softmax
    over a few classes is vectorized over the samples.
    """
    return (weight.flatten(1, 2) @ features.mT).view(*weight.shape[:3], -1)


def _initial_head(
    seed: int, num_features: int, num_classes: int, width: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (C, F or D), bias (C,) and embedding (D, F), empty without an embedding layer."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)

    inputs = width or num_features
    weight = uniform(num_classes, inputs, inputs=inputs)
    bias = uniform(num_classes, inputs=inputs)
    return weight, bias, uniform(width or 0, num_features, inputs=num_features)


def class_means(features: Tensor, labels: Tensor, num_classes: int, seeds: int) -> Classifier:
    """Nearest class mean by cosine (Kang et al., sec. 4.1): not trained, the same for all seeds.

    Args:
        features: Shape (N, F).
        labels: Shape (N,).
        num_classes: C.
        seeds: S.
    """
    members = F.one_hot(labels, num_classes).to(features)
    means = F.normalize(members.T @ features)  # the sum has the direction of the mean
    return Classifier(means.expand(seeds, -1, -1), features.new_zeros(seeds, num_classes))


class StackedMargins(NamedTuple):
    """Margins and focus of H heads; see :class:`sslgh.functional.margin_rules.Margins`.

    Attributes:
        own: row + column, the margin of the true class: shape (H, C), 0 where a class left the sum.
        column: Shape (H, C).
        weight: Shape (H, C).
        focus: Focal exponents, shape (H,); None: all 0.
    """

    own: Tensor
    column: Tensor
    weight: Tensor
    focus: Tensor | None


def stacked_margins(margins: Sequence[Margins], focus: Sequence[float]) -> StackedMargins:
    """Margins of H heads as one."""
    row, column, weight = (torch.stack(parts) for parts in zip(*margins, strict=True))
    own = (row + column).where(column > -torch.inf, 0)
    exponents = weight.new_tensor(focus) if any(focus) else None
    return StackedMargins(own, column, weight, exponents)


def stacked_cross_entropy(logits: Tensor, labels: Tensor, margins: StackedMargins) -> Tensor:
    """Mean loss of every head: ``Objective.loss`` of H heads in one pass.

    Args:
        logits: Shape (S, H, C, N).
        labels: Shape (S, N).
        margins: Margins of the H heads.

    Returns:
        Shape (S, H).

    Examples:
        Cross-entropy, and a head whose first class has a margin of log 3:

        >>> plain = Margins(torch.zeros(2), torch.zeros(2), torch.ones(2))
        >>> wide = plain._replace(row=torch.tensor([3.0, 1.0]).log())
        >>> margins = stacked_margins([plain, wide], [0, 0])
        >>> stacked_cross_entropy(torch.zeros(1, 2, 2, 1), torch.tensor([[0]]), margins).exp()
        tensor([[2., 4.]])
    """
    target = labels[:, None].expand(-1, logits.shape[1], -1)  # (S, H, N)
    # A matrix of margins would be (H, C, C): the own class is corrected instead.
    own = margins.own[:, labels].transpose(0, 1)
    shifted = (logits + margins.column[..., None]).scatter_add(
        2, target[:, :, None], -own[:, :, None]
    )
    loss = F.cross_entropy(shifted.flatten(0, 1), target.flatten(0, 1), reduction="none")
    loss = loss.view(target.shape)
    if margins.focus is not None:
        loss = loss * (-torch.expm1(-loss)) ** margins.focus[:, None]
    return (margins.weight[:, labels].transpose(0, 1) * loss).mean(2)


class HeadwiseAdam:
    """Adam (arXiv:1412.6980) with L2 in the gradient, as `torch.optim.Adam` has it, for stacked heads.

    `torch.optim.Adam` takes one learning rate and decay per parameter group, so that 48 heads would
    be 48 groups: a step of 10 classes and 128 features then takes 15 times as long, as long as
    all else in the training (`scripts/bench/heads.py`).

    Args:
        parameters: Tensors (S, H, ...).
        lr: Learning rate per head, shape (H,), or per seed and head, shape (S, H).
        weight_decay: Weight decay per head, shape (H,), for each parameter.
    """

    def __init__(
        self, parameters: Sequence[Tensor], *, lr: Tensor, weight_decay: Sequence[Tensor]
    ) -> None:
        self.parameters = list(parameters)
        self.set_rates(lr)
        self.weight_decay = [
            _broadcastable(decay, p) if decay.any() else None
            for decay, p in zip(weight_decay, self.parameters, strict=True)
        ]
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    def set_rates(self, lr: Tensor) -> None:
        """Other learning rates from now on."""
        self.lr = [_broadcastable(lr, p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], *, factor: float = 1.0) -> None:
        """One step with the learning rates times ``factor``; overwrites the gradients."""
        self.steps += 1
        root = math.sqrt(1 - BETA2**self.steps)
        size = factor * root / (1 - BETA1**self.steps)
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            decay = self.weight_decay[i]
            if decay is not None:
                gradient.addcmul_(parameter, decay)
            self.first[i].lerp_(gradient, 1 - BETA1)
            self.second[i].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            # In the memory of the gradient: allocating megabytes costs more than the arithmetic.
            update = torch.sqrt(self.second[i], out=gradient).add_(EPSILON * root)
            torch.div(self.first[i], update, out=update)
            parameter.addcmul_(update, self.lr[i], value=-size)


def _broadcastable(values: Tensor, parameter: Tensor) -> Tensor:
    """Values (H,) or (S, H) as a factor of a parameter (S, H, ...)."""
    return values.view(*values.shape, *(1 for _ in parameter.shape[2:])).to(parameter)
