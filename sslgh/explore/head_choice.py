"""Heads compared out of fold, and the rule by which one of them predicts.

Shapes: N photos, C kinds.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sslgh.functional.groups import Convention, class_accuracy, group_means, shot_groups

DEFAULT = "la"
# Another head must be better by so many standard errors of the difference.
CLEARLY = 2.0


class HeadFigures(NamedTuple):
    """Out-of-fold accuracies of one head.

    Attributes:
        average: Mean over the kinds that were held out.
        error: Standard error of ``average`` from the number of photos.
        groups: Mean over the kinds with many, medium and few labels; None for a group without one.
    """

    average: float
    error: float
    groups: dict[str, float | None]


class Comparison(NamedTuple):
    """Heads side by side.

    Attributes:
        heads: Figures by objective.
        convention: How kinds are divided into groups (`shot_groups`).
        chosen: Objective of the head that predicts.
        rule: Why, in words.
    """

    heads: dict[str, HeadFigures]
    convention: Convention
    chosen: str
    rule: str


RULE = (
    f"{DEFAULT}, unless another head is better out of fold by more than {CLEARLY:g} standard errors of the paired "
    "difference"
)
UNMEASURED = f"{DEFAULT}: nothing could be held out"


def compare_heads(predictions: Mapping[str, Tensor], labels: Tensor, counts: Tensor) -> Comparison:
    """Figures of out-of-fold predictions, and the head that `RULE` chooses.

    Args:
        predictions: Kinds (N,) by objective.
        labels: True kinds of these photos, shape (N,).
        counts: Labels of each kind, shape (C,), by which kinds are grouped.
    """
    convention = _convention(counts)
    groups = shot_groups(counts, convention=convention)
    right = {name: (found == labels).double() for name, found in predictions.items()}
    figures = {
        name: HeadFigures(
            *mean_over_kinds(right[name], labels),
            group_means(class_accuracy(predictions[name], labels, len(counts)), groups),
        )
        for name in predictions
    }
    chosen, largest = DEFAULT, CLEARLY
    for name in predictions:
        gain, error = mean_over_kinds(right[name] - right[DEFAULT], labels)
        if gain > 0 and gain > largest * error:
            chosen, largest = name, gain / error if error else math.inf
    return Comparison(figures, convention, chosen, RULE)


def _convention(counts: Tensor) -> Convention:
    """The usual thresholds where they divide the kinds, else thirds by number of labels."""
    groups = shot_groups(counts)
    return "thresholds" if sum(bool(mask.any()) for mask in groups.values()) > 1 else "thirds"


def mean_over_kinds(values: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean over kinds of the mean over a kind's photos, and its standard error.

    The variance of a photo is taken as the same for all kinds (pooled): a kind with a single photo shows none. Where
    all values are equal, it is that of one photo that differs by 1: few photos that are all right are no certainty.

    Args:
        values: Shape (N,).
        labels: Shape (N,), N > 0.

    Examples:
        >>> mean_over_kinds(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
        (0.75, 0.4330127018922193)
    """
    counts = torch.bincount(labels).double()
    sums = torch.zeros_like(counts).index_add(0, labels, values.double())
    present = counts > 0
    means = sums / counts.clamp(min=1)
    deviations = (values - means[labels]).square().sum()
    if deviations == 0:
        deviations = torch.tensor(1 - 1 / len(labels)).double()
    freedom = len(labels) - int(present.sum())
    variance = deviations / freedom if freedom > 0 else torch.tensor(0.25).double()
    error = (variance / counts[present]).sum().sqrt() / present.sum()
    return means[present].mean().item(), error.item()
