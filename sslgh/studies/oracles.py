"""Arms that use the labels: what a method without labels could gain at most."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslgh.data import DataError, ImageSet
from sslgh.data.class_sampling import class_sampling
from sslgh.engine.logger import MetricLogger
from sslgh.engine.pretraining import Pretraining
from sslgh.recipe import Recipe


class BalancedSampling(Pretraining):
    """Pretraining on epochs that show every class equally often."""

    def __init__(self, recipe: Recipe, accelerator: Any, images: ImageSet) -> None:
        super().__init__(recipe, accelerator, images)
        labels, epochs = _labels(images), recipe.train.epochs
        self.run.sampler.epoch_indices = class_sampling(
            labels, "class-balanced", seed=recipe.seed, epochs=epochs
        )


class TrueShares(Pretraining):
    """Pretraining whose GH term expects the classes' true shares, the largest on the fullest vertex."""

    def __init__(self, recipe: Recipe, accelerator: Any, images: ImageSet) -> None:
        super().__init__(recipe, accelerator, images)
        self.counts = torch.from_numpy(np.bincount(_labels(images)))

    def begin_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Begin an epoch; then replace what the term expects."""
        super().begin_epoch(epoch, global_step, logger)
        harmonizer = self.aux.harmonizer
        assert harmonizer is not None
        harmonizer.target_marginal.copy_(true_shares(self.counts, harmonizer.prior))


def true_shares(counts: Tensor, prior: Tensor) -> Tensor:
    """Shares of C classes spread over K vertices, shape (K,), in the order of an estimated prior (K,).

    Each class, of ``counts`` (C,) images, takes K / C vertices, its share in equal parts; of C that do not
    divide K the largest classes take one vertex more.

    Examples:
        >>> true_shares(torch.tensor([1, 3]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
        tensor([0.1250, 0.1250, 0.3750, 0.3750])
    """
    counts = counts[counts > 0].sort(descending=True).values.to(prior)
    if len(prior) < len(counts):
        raise ValueError(f"{len(counts)} classes need as many vertices, got {len(prior)}")
    each, rest = divmod(len(prior), len(counts))
    vertices = torch.full((len(counts),), each)
    vertices[:rest] += 1
    shares = (counts / counts.sum() / vertices.to(prior)).repeat_interleave(vertices)
    spread = torch.empty_like(prior)
    spread[prior.argsort(descending=True, stable=True)] = shares.sort(descending=True).values
    return spread


def _labels(images: ImageSet) -> Any:
    if images.labels is None:
        raise DataError("an oracle arm needs labeled training images; leave the arm out")
    return images.labels


ORACLES = {"balanced-sampling": BalancedSampling, "true-shares": TrueShares}
