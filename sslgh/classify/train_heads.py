"""Training of heads on frozen features: what all ways of training share.

Shapes: S seeds, N samples, F features, C classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sslgh.classify.ensemble import FeatureScaler, Head, HeadEnsemble, check_labeled
from sslgh.classify.objectives import OBJECTIVES
from sslgh.recipe.errors import some_of

log = logging.getLogger(__name__)


class DivergedError(ValueError):
    """A head whose settings make its loss infinite."""


@dataclass(frozen=True)
class Problem:
    """What all heads share.

    Attributes:
        features: Features, shape (N, F).
        labels: Classes, shape (N,).
        counts: Samples per class, shape (C,).
        seeds: S.
        progress: Whether progress bars are shown.
        scaler: What standardizes the features; None: their own moments.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    seeds: int = 1
    progress: bool = False
    scaler: FeatureScaler | None = None

    @property
    def prior(self) -> Tensor:
        """Class shares, shape (C,)."""
        return self.counts / self.counts.sum()


class Training(Protocol):
    """A way of training heads: `HeadTraining` or `Convergence`."""

    @property
    def weight_decay(self) -> float:
        """L2 of a head that has none of its own."""

    def fit(self, problem: Problem, heads: Sequence[Head]) -> HeadEnsemble:
        """Train heads on a problem that `check_problem` accepts; its features are not standardized."""


def train_heads(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    heads: Sequence[Head],
    training: Training,
    seeds: int = 1,
    progress: bool = False,
    scaler: FeatureScaler | None = None,
) -> HeadEnsemble:
    """Train heads, each as if it were alone. The prior is the class shares of ``labels``.

    Args:
        features: Shape (N, F), finite.
        labels: Shape (N,), integers in [0, C).
        num_classes: C, at least 2. A class without a sample is never predicted, which is logged once.
        heads: Heads to train; heads that differ in their decision only are trained once.
        training: Way of training.
        seeds: S; each seed has its own start and its own order of the samples.
        progress: Show progress bars.
        scaler: Moments by which the features are standardized, where more is known of them than these N samples say;
            None: their own.

    Raises:
        ValueError: If features are not finite, labels lie outside, there is a single class, or a head is not valid.
        DivergedError: If the training of a head diverged.

    Examples:
        >>> from sslgh.classify import Convergence
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [1.0]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> heads = [Head("ce"), Head("la"), Head("la", tau=0.5, weight_decay=0.1)]
        >>> training = Convergence(weight_decay=0.01)
        >>> trained = train_heads(features, labels, num_classes=2, heads=heads, training=training)
        >>> trained.predict(Head("la"), features)
        tensor([[0, 0, 0, 1]])
    """
    check_problem(features, labels, num_classes, heads)
    counts = torch.bincount(labels, minlength=num_classes)
    if absent := (counts == 0).nonzero().flatten().tolist():
        log.warning("classes %s have no training image and are never predicted", some_of(absent))
    return training.fit(Problem(features, labels.long(), counts, seeds, progress, scaler), heads)


def check_problem(
    features: Tensor, labels: Tensor, num_classes: int, heads: Sequence[Head]
) -> None:
    """Raise ``ValueError``, in one sentence, for what cannot be trained on."""
    _check_heads(heads)
    check_labeled(features, labels, num_classes)
    if (labels == labels[0]).all():
        raise ValueError(
            f"a classifier needs images of at least 2 classes, all {len(labels)} have label {labels[0].item()}"
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


def check_diverged(loss: Tensor, heads: Sequence[Head], remedy: str) -> None:
    """Raise `DivergedError`, with the remedy, if the loss (S, H) of a head is not finite."""
    finite = loss.isfinite().all(0).tolist()
    if lost := [head for head, fine in zip(heads, finite, strict=True) if not fine]:
        raise DivergedError(
            f"{len(lost)} of {len(heads)} heads diverged, {lost[0]} among them; lower its {remedy}"
        )


def feature_scaler(features: Tensor) -> FeatureScaler:
    """What brings features (N, F) to mean 0 and variance 1."""
    scale, mean = torch.std_mean(features, dim=0, correction=0)
    # A constant feature stays 0 instead of becoming rounding noise of size 1.
    return FeatureScaler(mean, torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-6), scale, 1.0))


def trained_head(head: Head, training: Training) -> Head:
    """The head that is trained for this one: another objective's where it only decides, tau 1 where it is not read."""
    objective = OBJECTIVES[head.objective]
    name = head.objective
    if objective.head is not None and not objective.rescales:
        name = objective.head
    decay = training.weight_decay if head.weight_decay is None else head.weight_decay
    return Head(name, head.tau if OBJECTIVES[name].takes_tau else 1.0, head.lr, decay)


def base_head(head: Head) -> Head:
    """The head that this one rescales; it does not read tau."""
    base = OBJECTIVES[head.objective].head
    assert base is not None
    assert not OBJECTIVES[base].takes_tau
    return head._replace(objective=base, tau=1.0)
