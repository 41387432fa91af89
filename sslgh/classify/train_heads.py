"""Training of many heads at once on frozen features.

Shapes: S seeds, N samples, F features, C classes.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from sslgh.classify.ensemble import FeatureScaler, Head, HeadEnsemble, check_finite
from sslgh.classify.fitting import HeadTraining, Problem, fit
from sslgh.classify.objectives import OBJECTIVES

__all__ = ["Head", "HeadEnsemble", "HeadTraining", "train_heads"]

log = logging.getLogger(__name__)


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

    Each seed has its own start and its own order of the samples; a head is the same whatever
    trains beside it. The prior is the class shares of ``labels``. It runs on the device of
    ``features``.

    Args:
        features: Shape (N, F), finite.
        labels: Shape (N,), integers in [0, C).
        num_classes: C, at least 2. A class without a sample is never predicted, said once in the log.
        heads: What to train; heads that differ in their decision only are trained once.
        training: How to train.
        seeds: S.
        progress: Show progress bars.

    Raises:
        ValueError: If features are not finite, labels lie outside, a class is alone, or a head cannot be.
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
    return fit_heads(
        features, labels, counts, heads=heads, training=training, seeds=seeds, progress=progress
    )


def fit_heads(
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    *,
    heads: Sequence[Head],
    training: HeadTraining,
    seeds: int,
    progress: bool,
) -> HeadEnsemble:
    """:func:`train_heads` on what was checked; ``counts`` are the samples of each class, (C,)."""
    features = features.float()
    standard = _standard(features, standardize=training.standardize)
    problem = Problem(
        features=(features - standard.mean) / standard.scale,
        labels=labels.long(),
        prior=counts / counts.sum(),
        training=training,
        seeds=seeds,
        progress=progress,
    )
    keys = {head: _trained_for(head, training) for head in heads}
    trained = fit(problem, dict.fromkeys(keys.values()))
    return HeadEnsemble(
        heads,
        {head: trained[key] for head, key in keys.items()},
        prior=problem.prior,
        num_samples=len(labels),
        standard=standard,
    )


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


def _trained_for(head: Head, training: HeadTraining) -> Head:
    """The head whose parameters this one decides by, with its numbers filled in."""
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


def _standard(features: Tensor, *, standardize: bool) -> FeatureScaler:
    mean, scale = torch.zeros_like(features[0]), torch.ones_like(features[0])
    if standardize:
        scale, mean = torch.std_mean(features, dim=0, correction=0)
        # A constant feature stays 0 instead of becoming rounding noise of size 1.
        scale = torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-6), scale, 1.0)
    return FeatureScaler(mean, scale)
