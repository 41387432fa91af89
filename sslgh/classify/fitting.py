"""The batched problem: heads that see the same samples in the same order take one step together.

Shapes: S seeds, H heads, N samples, B batch, F features, D embedding width, C classes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sslgh.classify.ensemble import Classifier, Head
from sslgh.classify.heads import Heads
from sslgh.classify.headwise_adam import HeadwiseAdam
from sslgh.classify.objectives import DEFERRED_FROM, OBJECTIVES
from sslgh.classify.retraining import Scales, class_means
from sslgh.classify.sampling import orders
from sslgh.classify.stacked_loss import StackedMargins, stacked_cross_entropy, stacked_margins


class DivergedError(ValueError):
    """A head whose settings make its loss infinite."""


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
        features: Shape (N, F), standardized.
        labels: Shape (N,).
        prior: Class shares, shape (C,).
        training: How heads are trained.
        seeds: S.
        progress: Whether progress bars are shown.
    """

    features: Tensor
    labels: Tensor
    prior: Tensor
    training: HeadTraining
    seeds: int
    progress: bool


def fit(problem: Problem, heads: Iterable[Head]) -> dict[Head, Classifier]:
    """Train heads whose lr and weight decay are given; those that finish others come last."""
    heads = list(heads)
    bases = {head: _base(head) for head in heads if OBJECTIVES[head.objective].rescales}
    done: dict[Head, Classifier] = {}
    others = dict.fromkeys([head for head in heads if head not in bases] + list(bases.values()))
    for group in _groups(others):
        done |= _fit_group(problem, group)
    if bases:
        finished = [done[base] for base in bases.values()]
        weight, bias = (torch.stack(part, 1) for part in list(zip(*finished, strict=True))[:2])
        done |= _descend(problem, tuple(bases), Scales(weight, bias))
    return done


def _base(head: Head) -> Head:
    """The head that this one finishes; it reads no tau."""
    base = OBJECTIVES[head.objective].head
    assert base is not None
    assert not OBJECTIVES[base].takes_tau
    return head._replace(objective=base, tau=1.0)


def _groups(heads: Iterable[Head]) -> list[tuple[Head, ...]]:
    """Heads of the same shape that see the same samples."""
    groups: dict[object, list[Head]] = {}
    for head in heads:
        objective = OBJECTIVES[head.objective]
        kind = objective.decision == "means", objective.embedding is None, objective.sampling
        groups.setdefault(kind, []).append(head)
    return [tuple(group) for group in groups.values()]


def _fit_group(problem: Problem, group: tuple[Head, ...]) -> dict[Head, Classifier]:
    objective = OBJECTIVES[group[0].objective]
    num_classes, num_features = len(problem.prior), problem.features.shape[1]
    if objective.decision == "means":
        means = class_means(problem.features, problem.labels, num_classes, problem.seeds)
        return dict.fromkeys(group, means)
    width = min(problem.training.embedding_width, num_features) if objective.embedding else None
    model = Heads(problem.seeds, len(group), num_features, num_classes, width=width)
    return _descend(problem, group, model.to(problem.features.device))


def _descend(
    problem: Problem, group: tuple[Head, ...], model: Heads | Scales
) -> dict[Head, Classifier]:
    training = problem.training
    optimizer = _optimizer(group, model, training)
    stages = [_margins(problem, group, deferred=deferred) for deferred in (False, True)]
    sampling = OBJECTIVES[group[0].objective].sampling
    epochs = orders(problem.labels, sampling, seeds=problem.seeds, epochs=training.epochs)
    loss = problem.features.new_zeros(problem.seeds, len(group))
    for epoch, order in enumerate(
        tqdm(
            epochs,
            desc=f"{len(group)} heads",
            total=training.epochs,
            unit="epoch",
            disable=not problem.progress,
            leave=False,
        )
    ):
        factor = (training.lr_end / training.lr) ** (epoch / training.epochs)
        margins = stages[epoch >= math.ceil(DEFERRED_FROM * training.epochs)]
        for rows in torch.split(order, training.batch_size, dim=1):
            loss = _loss(problem, group, model, margins, rows)
            # The sum: no head feels another.
            gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
            optimizer.step(gradients, factor=factor)
    _check_converged(loss, group)
    return _classifiers(model, group)


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
    like = next(model.parameters())
    rates = like.new_tensor([head.lr for head in group])
    decay = like.new_tensor([head.weight_decay for head in group])
    spared = {"scale"} if training.decay_bias else {"scale", "bias"}
    parameters = dict(model.named_parameters())
    return HeadwiseAdam(
        list(parameters.values()),
        lr=rates,
        weight_decay=[0 * decay if name in spared else decay for name in parameters],
    )


def _check_converged(loss: Tensor, group: Sequence[Head]) -> None:
    finite = loss.isfinite().all(0).tolist()
    if lost := [head for head, fine in zip(group, finite, strict=True) if not fine]:
        raise DivergedError(
            f"{len(lost)} of {len(group)} heads diverged, {lost[0]} among them; lower its lr, tau or weight_decay"
        )


@torch.no_grad()
def _classifiers(model: Heads | Scales, group: Sequence[Head]) -> dict[Head, Classifier]:
    weight, bias = model.weight.detach(), model.bias.detach()
    embedding = (
        model.embedding.detach()
        if isinstance(model, Heads) and model.embedding is not None
        else None
    )
    return {
        head: Classifier(weight[:, h], bias[:, h], None if embedding is None else embedding[:, h])
        for h, head in enumerate(group)
    }
