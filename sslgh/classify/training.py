"""Training of many heads at once on frozen features.

Shapes: S seeds, O objectives, N samples, B batch, F features, D embedding width, C classes.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sslgh.classify.heads import Heads
from sslgh.classify.objectives import EMBEDDING_WEIGHT, OBJECTIVES, Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadTraining:
    """Adam with a learning rate that falls exponentially, epoch by epoch.

    Attributes:
        epochs: Passes over the features.
        batch_size: Samples of one step; the last of an epoch may be smaller.
        lr: Learning rate of the first epoch.
        lr_end: What the rate would be in the epoch after the last.
        weight_decay: L2, in the gradient: adds weight_decay / 2 |w|^2 to the mean loss.
        decay_bias: Decay biases too.
        standardise: Bring every feature to mean 0 and variance 1 over the training samples.
        embedding_width: D of the embedding layer of an objective that has one; at most F.
    """

    epochs: int
    batch_size: int
    lr: float
    lr_end: float
    weight_decay: float
    decay_bias: bool = False
    standardise: bool = True
    embedding_width: int = 128


class TrainedHeads:
    """Heads that share their features, ready to decide.

    Attributes:
        objectives: The objectives asked for, in that order.
        prior: Class shares of the training samples, shape (C,).
    """

    def __init__(
        self,
        heads: dict[str, tuple[Heads, int]],
        objectives: Sequence[str],
        *,
        prior: Tensor,
        tau: float,
        mean: Tensor,
        scale: Tensor,
    ) -> None:
        self.objectives = tuple(objectives)
        self.prior = prior
        self._heads, self._tau, self._mean, self._scale = heads, tau, mean, scale

    @torch.no_grad()
    def embeddings(self, objective: str, features: Tensor) -> Tensor | None:
        """Embeddings (S, N, D) of features (N, F); None for a head without an embedding layer."""
        heads, position = self._heads[OBJECTIVES[objective].head or objective]
        if heads.embedding is None:
            return None
        return heads.embed(self._ready(features, heads))[:, position]

    @torch.no_grad()
    def scores(self, objective: str, features: Tensor) -> Tensor:
        """Scores (S, N, C) of features (N, F); -inf for a class without training samples."""
        heads, position = self._heads[OBJECTIVES[objective].head or objective]
        logits = heads.classify(heads.embed(self._ready(features, heads)))[:, position]
        decide = OBJECTIVES[objective].decide
        if decide is not None:
            logits = decide(logits.flatten(0, 1), self.prior, self._tau).view_as(logits)
        return logits.masked_fill(self.prior == 0, -math.inf)

    def predict(self, objective: str, features: Tensor, *, batch_size: int = 8192) -> Tensor:
        """Predicted classes (S, N) of features (N, F)."""
        parts = torch.split(features, batch_size)
        return torch.cat([self.scores(objective, part).argmax(-1) for part in parts], dim=1)

    def _ready(self, features: Tensor, heads: Heads) -> Tensor:
        standard = (features.to(self._mean) - self._mean) / self._scale
        return standard.expand(len(heads.weight), -1, -1)


def train_heads(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    objectives: Sequence[str],
    training: HeadTraining,
    tau: float = 1.0,
    seeds: int = 1,
    progress: bool = False,
) -> TrainedHeads:
    """Train a head for every objective and seed, all in one batched problem.

    Each seed has its own start and its own order of the samples; a head is the same whatever
    trains beside it. The prior is the class shares of ``labels``. It runs on the device of
    ``features``.

    Args:
        features: Shape (N, F), finite.
        labels: Shape (N,), integers in [0, C).
        num_classes: C, at least 2. A class without a sample is never predicted, said once in the log.
        objectives: Keys of `OBJECTIVES`.
        training: How to train.
        tau: Strength of the logit adjustment.
        seeds: S.
        progress: Show a progress bar.

    Raises:
        ValueError: If features are not finite, labels lie outside, a class is alone or an objective is unknown.
        RuntimeError: If the training diverged.
    """
    _check(features, labels, num_classes, objectives)
    features = features.float()
    counts = torch.bincount(labels, minlength=num_classes)
    if absent := (counts == 0).nonzero().flatten().tolist():
        log.warning("classes %s have no training image and are never predicted", absent)
    mean, scale = _standard(features, standardise=training.standardise)
    trained = TrainedHeads(
        _build(objectives, seeds, features, num_classes, training.embedding_width),
        objectives,
        prior=counts / counts.sum(),
        tau=tau,
        mean=mean,
        scale=scale,
    )
    _fit(trained, (features - mean) / scale, labels, training, seeds, progress=progress)
    return trained


def _build(
    objectives: Sequence[str], seeds: int, features: Tensor, num_classes: int, width: int
) -> dict[str, tuple[Heads, int]]:
    """The heads to train: one tensor for linear heads, one for heads with an embedding layer."""
    names = list(dict.fromkeys(OBJECTIVES[name].head or name for name in objectives))
    built: dict[str, tuple[Heads, int]] = {}
    for embeds in (False, True):
        group = [name for name in names if (OBJECTIVES[name].embedding_loss is not None) == embeds]
        if group:
            layer = min(width, features.shape[1]) if embeds else None
            heads = Heads(seeds, len(group), features.shape[1], num_classes, width=layer)
            heads.to(features.device)
            built |= {name: (heads, position) for position, name in enumerate(group)}
    return built


def _fit(
    trained: TrainedHeads,
    features: Tensor,
    labels: Tensor,
    training: HeadTraining,
    seeds: int,
    *,
    progress: bool,
) -> None:
    banks = list({id(heads): heads for heads, _ in trained._heads.values()}.values())
    optimiser = _optimiser(banks, training)
    orders = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    loss = features.new_zeros(())
    for epoch in tqdm(
        range(training.epochs), desc="heads", unit="epoch", disable=not progress, leave=False
    ):
        rate = training.lr * (training.lr_end / training.lr) ** (epoch / training.epochs)
        for group in optimiser.param_groups:
            group["lr"] = rate
        for batch in _batches(len(features), training.batch_size, orders):
            rows = batch.to(features.device)
            loss = _loss(trained, features[rows], labels[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    if not loss.isfinite():
        raise RuntimeError(f"the heads diverged with {training}; lower lr")
    for heads in banks:
        heads.requires_grad_(False)


def _loss(trained: TrainedHeads, features: Tensor, labels: Tensor) -> Tensor:
    """Sum over all heads of their mean losses, so that no head feels another; features (S, B, F)."""
    outputs: dict[int, tuple[Tensor, Tensor]] = {}
    total = features.new_zeros(())
    for name, (heads, position) in trained._heads.items():
        if id(heads) not in outputs:
            embeddings = heads.embed(features)
            outputs[id(heads)] = embeddings, heads.classify(embeddings)
        embeddings, logits = (output[:, position] for output in outputs[id(heads)])
        objective = OBJECTIVES[name]
        per_sample = objective.logit_loss(
            logits.flatten(0, 1), labels.flatten(), trained.prior, trained._tau
        )
        total = total + per_sample.view_as(labels).mean(1).sum()
        if objective.embedding_loss is not None:
            weights = heads.weight[:, position]
            total = total + EMBEDDING_WEIGHT * _embedding_loss(
                objective, trained, embeddings, labels, weights
            )
    return total


def _embedding_loss(
    objective: Objective, trained: TrainedHeads, embeddings: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    assert objective.embedding_loss is not None
    seeds = zip(embeddings, labels, weights, strict=True)
    return torch.stack(
        [objective.embedding_loss(z, y, trained.prior, trained._tau, w).mean() for z, y, w in seeds]
    ).sum()


def _optimiser(banks: Sequence[Heads], training: HeadTraining) -> torch.optim.Optimizer:
    weights = [p for heads in banks for name, p in heads.named_parameters() if name != "bias"]
    bias_decay = training.weight_decay if training.decay_bias else 0.0
    return torch.optim.Adam(
        [
            {"params": weights, "weight_decay": training.weight_decay},
            {"params": [heads.bias for heads in banks], "weight_decay": bias_decay},
        ],
        lr=training.lr,
    )


def _batches(samples: int, batch_size: int, orders: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """One epoch of rows (S, B), in an order of its own for each seed."""
    order = torch.stack([torch.randperm(samples, generator=generator) for generator in orders])
    yield from torch.split(order, batch_size, dim=1)


def _standard(features: Tensor, *, standardise: bool) -> tuple[Tensor, Tensor]:
    mean, scale = torch.zeros_like(features[0]), torch.ones_like(features[0])
    if standardise:
        scale, mean = torch.std_mean(features, dim=0, correction=0)
        # A constant feature stays 0 instead of becoming rounding noise of size 1.
        scale = torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-6), scale, 1.0)
    return mean, scale


def _check(features: Tensor, labels: Tensor, num_classes: int, objectives: Sequence[str]) -> None:
    if unknown := [name for name in objectives if name not in OBJECTIVES]:
        raise ValueError(f"unknown objective '{unknown[0]}'; known are {', '.join(OBJECTIVES)}")
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) == 0:
        raise ValueError(
            f"features and labels must be (N, F) and (N,), got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if bad := (~features.isfinite().all(1)).sum().item():
        raise ValueError(
            f"features must be finite, but {bad} of {len(features)} rows hold nan or inf"
        )
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}")
    if low == high:
        raise ValueError(
            f"a classifier needs images of at least 2 classes, all {len(labels)} have label {low}"
        )
