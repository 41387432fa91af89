"""Many heads on the same features as one tensor.

Shapes: S seeds, H heads, N samples, F features, D embedding width, C classes.
"""

import math

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """S x H linear classifiers, each on the features or on an embedding layer of its own.

    All heads of one seed start from the same weights, drawn as `torch.nn.Linear` draws them,
    and seed s starts the same whatever trains beside it.

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
        inputs = num_features if width is None else width
        starts = [_start(seed, num_features, num_classes, width) for seed in range(seeds)]
        weight, bias, embedding = (torch.stack(parts) for parts in zip(*starts, strict=True))
        self.weight = nn.Parameter(_repeat(weight, heads))  # (S, H, C, F or D)
        self.bias = nn.Parameter(_repeat(bias, heads))  # (S, H, C)
        self.embedding = None if width is None else nn.Parameter(_repeat(embedding, heads))
        assert self.weight.shape == (seeds, heads, num_classes, inputs)

    def embed(self, features: Tensor) -> Tensor | None:
        """Embeddings (S, H, D, N); None where there is no embedding layer.

        Args:
            features: Shape (S, N, F), a batch of its own for each seed.
        """
        return None if self.embedding is None else products(self.embedding, features)

    def classify(self, features: Tensor, embeddings: Tensor | None) -> Tensor:
        """Logits (S, H, C, N) of features (S, N, F) and what `embed` made of them."""
        if embeddings is None:
            return products(self.weight, features) + self.bias[..., None]
        return self.weight @ embeddings + self.bias[..., None]


def products(weight: Tensor, features: Tensor) -> Tensor:
    """Every head's matrix of a seed in one product: (S, H, C, F) and (S, N, F) to (S, H, C, N).

    Samples come last: the gradient of the weights then lies in memory as they do, and the softmax
    over a few classes runs over the samples side by side.
    """
    return (weight.flatten(1, 2) @ features.mT).view(*weight.shape[:3], -1)


def _start(seed: int, num_features: int, num_classes: int, width: int | None) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)

    inputs = width or num_features
    weight = uniform(num_classes, inputs, inputs=inputs)
    bias = uniform(num_classes, inputs=inputs)
    return weight, bias, uniform(width or 0, num_features, inputs=num_features)


def _repeat(start: Tensor, heads: int) -> Tensor:
    return start[:, None].repeat(1, heads, *(1 for _ in start.shape[1:]))
