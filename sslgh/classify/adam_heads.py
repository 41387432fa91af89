"""Heads trained by Adam for a given number of epochs, many at once as one batched problem.

Shapes: S seeds, H heads, N samples, B batch, F features, D embedding width, C classes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sslgh.classify.embedding_terms import TermInput
from sslgh.classify.ensemble import Classifier, FeatureScaler, Head, HeadEnsemble
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
from sslgh.classify.train_heads import (
    Problem,
    base_head,
    check_diverged,
    feature_scaler,
    trained_head,
)
from sslgh.data.class_sampling import class_sampling


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

    def fit(self, problem: Problem, heads: Sequence[Head]) -> HeadEnsemble:
        """Train heads, all of one shape in one batched problem; as `train_heads`."""
        features = problem.features.float()
        scaler = FeatureScaler(torch.zeros_like(features[0]), torch.ones_like(features[0]))
        if self.standardize:
            scaler = problem.scaler or feature_scaler(features)
        problem = replace(problem, features=(features - scaler.mean) / scaler.scale)
        keys = {head: self._with_rate(trained_head(head, self)) for head in heads}
        wanted = dict.fromkeys(keys.values())
        bases = {head: base_head(head) for head in wanted if OBJECTIVES[head.objective].rescales}
        trained: dict[Head, Classifier] = {}
        # Heads that rescale others come last.
        for group in _groups([head for head in wanted if head not in bases] + list(bases.values())):
            if OBJECTIVES[group[0].objective].decision == "means":
                classes, seeds = len(problem.counts), problem.seeds
                means = class_means(problem.features, problem.labels, classes, seeds)
                trained |= dict.fromkeys(group, means)
            else:
                model = initial_heads(problem, group, self.embedding_width)
                trained |= _train_group(problem, self, group, model)
        if bases:
            finished = [trained[base] for base in bases.values()]
            weight, bias = (torch.stack(part, 1) for part in list(zip(*finished, strict=True))[:2])
            trained |= _train_group(problem, self, tuple(bases), Scales(weight, bias))
        return HeadEnsemble(
            heads,
            {head: trained[key] for head, key in keys.items()},
            prior=problem.prior,
            num_samples=len(problem.labels),
            scaler=scaler,
        )

    def _with_rate(self, head: Head) -> Head:
        return head._replace(lr=self.lr if head.lr is None else head.lr)


def _train_group(
    problem: Problem, training: HeadTraining, group: Sequence[Head], model: Heads | Scales
) -> dict[Head, Classifier]:
    """The training loop, for heads of one shape that see the same samples in the same order."""
    lr = model.weight.new_tensor([head.lr for head in group])
    not_decayed = {"scale"} if training.decay_bias else {"scale", "bias"}
    optimizer = head_optimizer(group, model, lr=lr, not_decayed=not_decayed)
    margins_by_stage = [
        group_margins(problem, group, deferred=deferred) for deferred in (False, True)
    ]
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
            loss = heads_loss(problem, group, model, margins, rows)
            # The sum: no head depends on another.
            gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
            optimizer.step(gradients, factor=factor)
    check_diverged(loss, group, "lr, tau or weight_decay")
    return classifiers(group, model)


def classifiers(group: Sequence[Head], model: Heads | Scales) -> dict[Head, Classifier]:
    """The parameters of each head of a group."""
    weight, bias = model.weight.detach(), model.bias.detach()
    embedding = None if model.embedding is None else model.embedding.detach()
    return {
        head: Classifier(weight[:, h], bias[:, h], None if embedding is None else embedding[:, h])
        for h, head in enumerate(group)
    }


def heads_loss(
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
        objective.embedding(TermInput(z[:, None], y, w, prior, settings, None)).mean()
        for z, y, w in zip(embeddings, labels, weights, strict=True)
    ]
    return objective.embedding_weight * torch.stack(terms)


def sample_orders(
    labels: Tensor, kind: Literal["instance", "class-balanced"], *, seeds: int, epochs: int
) -> Iterator[Tensor]:
    """Rows (S, N) of every epoch: each sample once, or each class equally often; a function of the seed."""
    if kind == "instance":
        yield from islice(shuffled_orders(labels, seeds=seeds), epochs)
        return
    classes = labels.cpu().numpy().astype(np.int64)
    draws = [class_sampling(classes, kind, seed=seed, epochs=epochs) for seed in range(seeds)]
    for epoch in range(epochs):
        rows = [torch.from_numpy(draw(epoch)) for draw in draws]
        yield torch.stack(rows).to(labels.device)


def shuffled_orders(labels: Tensor, *, seeds: int) -> Iterator[Tensor]:
    """Rows (S, N) of one epoch after another, without end: each sample once."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    while True:
        rows = [torch.randperm(len(labels), generator=generator) for generator in generators]
        yield torch.stack(rows).to(labels.device)


def _groups(heads: Iterable[Head]) -> list[tuple[Head, ...]]:
    """Heads of the same shape that see the same samples."""
    groups: dict[object, dict[Head, None]] = {}
    for head in heads:
        objective = OBJECTIVES[head.objective]
        kind = objective.decision == "means", objective.embedding is None, objective.sampling
        groups.setdefault(kind, {})[head] = None
    return [tuple(group) for group in groups.values()]


def initial_heads(problem: Problem, group: Sequence[Head], embedding_width: int) -> Heads:
    """Heads of one shape before training, on the device of the features."""
    num_features = problem.features.shape[1]
    width = None
    if OBJECTIVES[group[0].objective].embedding is not None:
        width = min(embedding_width, num_features)
    heads = Heads(problem.seeds, len(group), num_features, len(problem.prior), width=width)
    return heads.to(problem.features.device)


def group_margins(problem: Problem, group: Sequence[Head], *, deferred: bool) -> StackedMargins:
    """Margins of heads, or of their deferred part."""
    size = len(problem.labels)
    objectives = [OBJECTIVES[head.objective] for head in group]
    margins = [
        objective.margins_of(problem.prior, tau=head.tau, num_samples=size, deferred=deferred)
        for objective, head in zip(objectives, group, strict=True)
    ]
    return stacked_margins(margins, [objective.focus for objective in objectives])


def head_optimizer(
    group: Sequence[Head], model: Heads | Scales, *, lr: Tensor, not_decayed: set[str]
) -> HeadwiseAdam:
    """Adam with a learning rate and a weight decay per head; parameters named in ``not_decayed`` have none."""
    parameters = dict(model.named_parameters())
    decay = lr.new_tensor([head.weight_decay for head in group])
    decays = [0 * decay if name in not_decayed else decay for name in parameters]
    return HeadwiseAdam(list(parameters.values()), lr=lr, weight_decay=decays)
