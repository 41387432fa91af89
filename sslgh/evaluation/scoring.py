"""From predictions and features to the numbers of a result.

Shapes: S seeds, N images, F features, D embedding width, C classes.
"""

import math

import torch
from torch import Tensor

from sslgh.evaluation.results import CONVENTIONS, METRICS, Metrics, Scores, Spread
from sslgh.functional.groups import class_accuracy, group_means, group_metrics, shot_groups
from sslgh.functional.tightness import class_tightness


def score(predictions: Tensor, labels: Tensor, group_counts: Tensor) -> Scores:
    """Judge predictions by both conventions of groups.

    Args:
        predictions: Classes for each seed, shape (S, N).
        labels: True classes, shape (N,).
        group_counts: Shape (C,), images of each class in pretraining.
    """
    test_counts = torch.bincount(labels, minlength=len(group_counts))
    accuracies = [class_accuracy(row, labels, len(group_counts)) for row in predictions]
    metrics: dict[str, dict[str, Spread | None]] = {}
    for convention in CONVENTIONS:
        groups = shot_groups(group_counts, convention=convention)
        seeds = [group_metrics(a, groups, test_counts=test_counts) for a in accuracies]
        metrics[convention] = {
            name: Spread.over([seed[name] for seed in seeds]) for name in METRICS
        }
    return Scores(metrics, _known(torch.stack(accuracies).mean(0)))


def group_tightness(embeddings: Tensor, labels: Tensor, group_counts: Tensor) -> dict[str, Metrics]:
    """Tightness of groups by both conventions, and of all classes.

    Args:
        embeddings: Shape (S, N, D); the mean over seeds is returned.
        labels: Shape (N,).
        group_counts: Shape (C,).
    """
    values = torch.stack([class_tightness(z, labels, len(group_counts)) for z in embeddings]).mean(
        0
    )
    everyone = {"average": torch.ones_like(group_counts, dtype=torch.bool)}
    return {
        convention: group_means(values, shot_groups(group_counts, convention=convention) | everyone)
        for convention in CONVENTIONS
    }


def _known(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
