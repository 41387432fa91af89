"""Training of many heads at once on frozen features.

Shapes: S seeds, H heads, N samples, B batch, F features, D embedding width, C classes.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sslgh.classify.ensemble import Classifier, FeatureScaler, Head, HeadEnsemble, check_finite
from sslgh.classify.heads import (
    Heads,
    HeadwiseAdam,
    Scales,
    StackedMargins,
    class_means,
    stacked_cross_entropy,
    stacked_margins,
)
from sslgh.classify.objectives import DEFERRED_FROM, OBJECTIVES
from sslgh.data.class_sampling import class_sampling

log = logging.getLogger(__name__)


class DivergedError(ValueError):
    """A head whose settings make its loss infinite."""


@dataclass(frozen=True)
class HeadTraining:
    """Adam with a learning rate that falls exponentially, epoch by epoch.

    Attributes:
        epochs: Passes over the features.
        batch_size: Samples of one step; the last of an epoch may be smaller.
        lr: Learning rate of the first epoch.
        lr_end: Learning rate of the epoch after the last.
        weight_decay: L2, in the gradient: adds weight_decay / 2 |w|^2 to the mean loss.
        decay_bias: Decay biases too.
        standardize: Bring every feature to mean 0 and variance 1 over the training samples.
        embedding_width: D of the embedding layer of an objective that has one; at most F.
    """

    epochs: int
    batch_size: int
    lr: float
    lr_end: float
    weight_decay: float
    decay_bias: bool = False
    standardize: bool = True
    embedding_width: int = 128


@dataclass(frozen=True)
class Problem:
    """What all heads share.

    Attributes:
        features: Features, shape (N, F).
        labels: Classes, shape (N,).
        counts: Samples per class, shape (C,).
        training: Settings of the training.
        seeds: S.
        progress: Whether progress bars are shown.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    training: HeadTraining
    seeds: int = 1
    progress: bool = False

    @property
    def prior(self) -> Tensor:
        """Class shares, shape (C,)."""
        return self.counts / self.counts.sum()


def train_heads(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    heads: Sequence[Head],
    training: HeadTraining,
    seeds: int = 1,
    progress: bool = False,
) -> HeadEnsemble:
    """Train heads for every seed, all of one shape in one batched problem.

    Each seed has its own start and its own order of the samples; no head depends on another. The prior
    is the class shares of ``labels``.

    Args:
        features: Shape (N, F), finite.
        labels: Shape (N,), integers in [0, C).
        num_classes: C, at least 2. A class without a sample is never predicted, which is logged once.
        heads: Heads to train; heads that differ in their decision only are trained once.
        training: Settings of the training.
        seeds: S.
        progress: Show progress bars.

    Raises:
        ValueError: If features are not finite, labels lie outside, there is a single class, or a head is not valid.
        DivergedError: If the training of a head diverged.

    Examples:
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [1.0]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> training = HeadTraining(epochs=9, batch_size=4, lr=0.1, lr_end=0.01, weight_decay=0.0)
        >>> heads = [Head("ce"), Head("la"), Head("la", tau=0.5, lr=0.2)]
        >>> trained = train_heads(features, labels, num_classes=2, heads=heads, training=training)
        >>> trained.predict(Head("la"), features)
        tensor([[0, 0, 0, 1]])
    """
    check_problem(features, labels, num_classes, heads)
    counts = torch.bincount(labels, minlength=num_classes)
    if absent := (counts == 0).nonzero().flatten().tolist():
        log.warning("classes %s have no training image and are never predicted", absent)
    return train_checked(Problem(features, labels, counts, training, seeds, progress), heads)


def train_checked(problem: Problem, heads: Sequence[Head]) -> HeadEnsemble:
    """`train_heads` for a problem that `check_problem` accepts; its features are not standardized."""
    training, counts = problem.training, problem.counts
    scaler = _feature_scaler(problem.features.float(), standardize=training.standardize)
    features = (problem.features.float() - scaler.mean) / scaler.scale
    problem = replace(problem, features=features, labels=problem.labels.long())
    keys = {head: _trained_head(head, training) for head in heads}
    wanted = dict.fromkeys(keys.values())
    bases = {head: _base_head(head) for head in wanted if OBJECTIVES[head.objective].rescales}
    trained: dict[Head, Classifier] = {}
    # Heads that rescale others come last.
    for group in _groups([head for head in wanted if head not in bases] + list(bases.values())):
        if OBJECTIVES[group[0].objective].decision == "means":
            means = class_means(problem.features, problem.labels, len(counts), problem.seeds)
            trained |= dict.fromkeys(group, means)
        else:
            trained |= _train_group(problem, group, _initial_heads(problem, group))
    if bases:
        finished = [trained[base] for base in bases.values()]
        weight, bias = (torch.stack(part, 1) for part in list(zip(*finished, strict=True))[:2])
        trained |= _train_group(problem, tuple(bases), Scales(weight, bias))
    return HeadEnsemble(
        heads,
        {head: trained[key] for head, key in keys.items()},
        prior=problem.prior,
        num_samples=len(problem.labels),
        scaler=scaler,
    )


def _train_group(
    problem: Problem, group: Sequence[Head], model: Heads | Scales
) -> dict[Head, Classifier]:
    """The training loop, for heads of one shape that see the same samples in the same order."""
    training = problem.training
    optimizer = _optimizer(group, model, training)
    margins_by_stage = [_margins(problem, group, deferred=deferred) for deferred in (False, True)]
    sampling = OBJECTIVES[group[0].objective].sampling
    epochs = sample_orders(problem.labels, sampling, seeds=problem.seeds, epochs=training.epochs)
    bar = tqdm(
        epochs,
        desc=f"{len(group)} heads",
        total=training.epochs,
        unit="epoch",
        disable=None if problem.progress else True,  # None: no bar in a log file
        leave=False,
    )
    loss = problem.features.new_zeros(problem.seeds, len(group))
    for epoch, order in enumerate(bar):
        factor = (training.lr_end / training.lr) ** (epoch / training.epochs)
        margins = margins_by_stage[epoch >= math.ceil(DEFERRED_FROM * training.epochs)]
        for rows in torch.split(order, training.batch_size, dim=1):
            loss = _loss(problem, group, model, margins, rows)
            # The sum: no head depends on another.
            gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
            optimizer.step(gradients, factor=factor)
    finite = loss.isfinite().all(0).tolist()
    if lost := [head for head, fine in zip(group, finite, strict=True) if not fine]:
        raise DivergedError(
            f"{len(lost)} of {len(group)} heads diverged, {lost[0]} among them; lower its lr, tau or weight_decay"
        )
    weight, bias = model.weight.detach(), model.bias.detach()
    embedding = None if model.embedding is None else model.embedding.detach()
    return {
        head: Classifier(weight[:, h], bias[:, h], None if embedding is None else embedding[:, h])
        for h, head in enumerate(group)
    }


def _loss(
    problem: Problem,
    group: Sequence[Head],
    model: Heads | Scales,
    margins: StackedMargins,
    rows: Tensor,
) -> Tensor:
    """Mean loss (S, H) of every head over its rows (S, B)."""
    features, labels = problem.features[rows], problem.labels[rows]
    embeddings = model.embed(features)
    loss = stacked_cross_entropy(model.classify(features, embeddings), labels, margins)
    if embeddings is None:
        return loss
    terms = [
        _embedding_loss(head, embeddings[:, h].mT, labels, model.weight[:, h], problem.prior)
        for h, head in enumerate(group)
    ]
    return loss + torch.stack(terms, 1)


def _embedding_loss(
    head: Head, embeddings: Tensor, labels: Tensor, weights: Tensor, prior: Tensor
) -> Tensor:
    """Embedding term (S,) of one head: embeddings (S, B, D), labels (S, B), class weights (S, C, D)."""
    objective = OBJECTIVES[head.objective]
    assert objective.embedding is not None
    settings = objective.term._replace(tau=head.tau)
    terms = [
        objective.embedding(z[:, None], y, w, prior, settings, None).mean()
        for z, y, w in zip(embeddings, labels, weights, strict=True)
    ]
    return objective.embedding_weight * torch.stack(terms)


def sample_orders(
    labels: Tensor, kind: Literal["instance", "class-balanced"], *, seeds: int, epochs: int
) -> Iterator[Tensor]:
    """Rows (S, N) of every epoch: each sample once, or each class equally often; a function of the seed."""
    if kind == "instance":
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        for _ in range(epochs):
            rows = [torch.randperm(len(labels), generator=generator) for generator in generators]
            yield torch.stack(rows).to(labels.device)
        return
    classes = labels.cpu().numpy().astype(np.int64)
    draws = [class_sampling(classes, kind, seed=seed, epochs=epochs) for seed in range(seeds)]
    for epoch in range(epochs):
        rows = [torch.from_numpy(draw(epoch)) for draw in draws]
        yield torch.stack(rows).to(labels.device)


def check_problem(
    features: Tensor, labels: Tensor, num_classes: int, heads: Sequence[Head]
) -> None:
    """Raise ``ValueError``, in one sentence, for what cannot be trained on."""
    _check_heads(heads)
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) == 0:
        raise ValueError(
            f"features and labels must be (N, F) and (N,), got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    check_finite(features)
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}")
    if low == high:
        raise ValueError(
            f"a classifier needs images of at least 2 classes, all {len(labels)} have label {low}"
        )


def _check_heads(heads: Sequence[Head]) -> None:
    if not heads:
        raise ValueError("there are no heads to train")
    for head in heads:
        if head.objective not in OBJECTIVES:
            raise ValueError(
                f"unknown objective '{head.objective}'; known are {', '.join(OBJECTIVES)}"
            )
        if head.tau < 0 or (head.weight_decay or 0) < 0:
            raise ValueError(f"tau and weight_decay must not be negative, got {head}")
        if head.lr is not None and not head.lr > 0:
            raise ValueError(f"lr must be positive, got {head}")


def _feature_scaler(features: Tensor, *, standardize: bool) -> FeatureScaler:
    mean, scale = torch.zeros_like(features[0]), torch.ones_like(features[0])
    if standardize:
        scale, mean = torch.std_mean(features, dim=0, correction=0)
        # A constant feature stays 0 instead of becoming rounding noise of size 1.
        scale = torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-6), scale, 1.0)
    return FeatureScaler(mean, scale)


def _trained_head(head: Head, training: HeadTraining) -> Head:
    """The head whose parameters this one decides by, with the defaults filled in."""
    objective = OBJECTIVES[head.objective]
    name = head.objective
    if objective.head is not None and not objective.rescales:
        name = objective.head
    return Head(
        name,
        tau=head.tau if OBJECTIVES[name].takes_tau else 1.0,
        lr=training.lr if head.lr is None else head.lr,
        weight_decay=training.weight_decay if head.weight_decay is None else head.weight_decay,
    )


def _base_head(head: Head) -> Head:
    """The head that this one rescales; it does not read tau."""
    base = OBJECTIVES[head.objective].head
    assert base is not None
    assert not OBJECTIVES[base].takes_tau
    return head._replace(objective=base, tau=1.0)


def _groups(heads: Iterable[Head]) -> list[tuple[Head, ...]]:
    """Heads of the same shape that see the same samples."""
    groups: dict[object, dict[Head, None]] = {}
    for head in heads:
        objective = OBJECTIVES[head.objective]
        kind = objective.decision == "means", objective.embedding is None, objective.sampling
        groups.setdefault(kind, {})[head] = None
    return [tuple(group) for group in groups.values()]


def _initial_heads(problem: Problem, group: Sequence[Head]) -> Heads:
    num_features = problem.features.shape[1]
    width = None
    if OBJECTIVES[group[0].objective].embedding is not None:
        width = min(problem.training.embedding_width, num_features)
    heads = Heads(problem.seeds, len(group), num_features, len(problem.prior), width=width)
    return heads.to(problem.features.device)


def _margins(problem: Problem, group: Sequence[Head], *, deferred: bool) -> StackedMargins:
    size = len(problem.labels)
    objectives = [OBJECTIVES[head.objective] for head in group]
    margins = [
        objective.margins_of(problem.prior, tau=head.tau, num_samples=size, deferred=deferred)
        for objective, head in zip(objectives, group, strict=True)
    ]
    return stacked_margins(margins, [objective.focus for objective in objectives])


def _optimizer(
    group: Sequence[Head], model: Heads | Scales, training: HeadTraining
) -> HeadwiseAdam:
    parameters = dict(model.named_parameters())
    like = next(iter(parameters.values()))
    decay = like.new_tensor([head.weight_decay for head in group])
    not_decayed = {"scale"} if training.decay_bias else {"scale", "bias"}
    return HeadwiseAdam(
        list(parameters.values()),
        lr=like.new_tensor([head.lr for head in group]),
        weight_decay=[0 * decay if name in not_decayed else decay for name in parameters],
    )
