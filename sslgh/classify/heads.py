"""Many heads on the same features as one tensor.

Shapes: S seeds, O objectives, N samples, F features, D embedding width, C classes.
"""

import math

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """S x O linear classifiers, each on the features or on an embedding layer of its own.

    All objectives of one seed start from the same weights, drawn as `torch.nn.Linear` draws
    them, and seed s starts the same whatever trains beside it.

    Args:
        seeds: S; seed s draws from a generator seeded with s.
        objectives: O.
        num_features: F.
        num_classes: C.
        width: D, the width of an embedding layer without bias; None: no such layer.
    """

    def __init__(
        self,
        seeds: int,
        objectives: int,
        num_features: int,
        num_classes: int,
        *,
        width: int | None = None,
    ) -> None:
        super().__init__()
        inputs = num_features if width is None else width
        starts = [_start(seed, num_features, num_classes, width) for seed in range(seeds)]
        weight, bias, embedding = (torch.stack(parts) for parts in zip(*starts, strict=True))
        self.weight = nn.Parameter(_repeat(weight, objectives))  # (S, O, C, F or D)
        self.bias = nn.Parameter(_repeat(bias, objectives))  # (S, O, C)
        self.embedding = None if width is None else nn.Parameter(_repeat(embedding, objectives))
        assert self.weight.shape == (seeds, objectives, num_classes, inputs)

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings (S, O, N, D), or the features where there is no embedding layer.

        Args:
            features: Shape (S, N, F), a batch of its own for each seed.
        """
        if self.embedding is None:
            return features[:, None].expand(-1, self.weight.shape[1], -1, -1)
        return _apply(features, self.embedding)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (S, O, N, C) of what `embed` returned."""
        if self.embedding is None:
            return _apply(embeddings[:, 0], self.weight) + self.bias[:, :, None]
        return embeddings @ self.weight.mT + self.bias[:, :, None]


def _start(seed: int, num_features: int, num_classes: int, width: int | None) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)

    inputs = width or num_features
    weight = uniform(num_classes, inputs, inputs=inputs)
    bias = uniform(num_classes, inputs=inputs)
    return weight, bias, uniform(width or 0, num_features, inputs=num_features)


def _repeat(start: Tensor, objectives: int) -> Tensor:
    return start[:, None].repeat(1, objectives, *(1 for _ in start.shape[1:]))


def _apply(features: Tensor, weight: Tensor) -> Tensor:
    """Every objective's matrix of a seed in one product: (S, N, F) and (S, O, C, F) to (S, O, N, C)."""
    seeds, objectives, outputs, _ = weight.shape
    product = features @ weight.flatten(1, 2).mT
    return product.view(seeds, -1, objectives, outputs).transpose(1, 2)
