"""From class scores and embeddings to the numbers of a result.

Shapes: S seeds, N images, D embedding width, C classes.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sslgh.evaluation.results import CONVENTIONS, METRICS, Metrics, Scores, Spread
from sslgh.functional.calibration import calibration_error
from sslgh.functional.groups import (
    class_accuracy,
    class_f1,
    class_tightness,
    confused_share,
    group_means,
    group_metrics,
    shot_groups,
)

# Scores held at once: 128 MiB of float64.
CHUNK = 2**24


class Predictions(NamedTuple):
    """The class of the highest score (S, N) and its softmax probability (S, N)."""

    classes: Tensor
    confidence: Tensor


def predict(parts: Iterable[Tensor]) -> Predictions:
    """Predictions from class scores.

    Args:
        parts: Scores (S, N_p, C) of consecutive images; of equal scores the first class is predicted.

    Raises:
        ValueError: If the scores of an image are no distribution: nan, inf, or all -inf.
    """
    classes, confidence = [], []
    for scores in parts:
        classes.append(scores.argmax(-1))
        exact = scores.double()
        best = exact.gather(-1, classes[-1][..., None])[..., 0]
        confidence.append((best - exact.logsumexp(-1)).exp())
    found = Predictions(torch.cat(classes, dim=1), torch.cat(confidence, dim=1))
    if broken := int(found.confidence.isnan().any(0).sum()):
        raise ValueError(
            f"class scores must be finite, or -inf for what is never predicted, but those of {broken} of "
            f"{found.confidence.shape[1]} images are not; the classifier diverged"
        )
    return found


def rows_at_once(per_image: int) -> int:
    """Number of images whose scores are held at once, for so many scores per image."""
    return max(1, CHUNK // per_image)


def evaluate_scores(
    scores: Tensor, labels: Tensor, group_counts: Tensor, *, weight_norms: Tensor | None = None
) -> Scores:
    """All metrics of class scores on a test set, by both conventions of groups.

    Args:
        scores: Shape (S, N, C), finite, or -inf for a class that is never predicted; S = 1 for one classifier. The
            calibration is that of their softmax, whatever they are.
        labels: True classes, shape (N,), in [0, C).
        group_counts: Shape (C,), images of each class by which it is many-, medium- or few-shot.
        weight_norms: Shape (S, C), lengths of the class weights; None: not known.

    Returns:
        Means and spreads over seeds, without tightness, which takes embeddings.

    Raises:
        ValueError: If shapes disagree, a label is no class, or scores are not finite.
    """
    if scores.ndim != 3 or scores.shape[1:] != (len(labels), len(group_counts)) or not len(labels):
        raise ValueError(
            f"scores must be (S, {len(labels)}, {len(group_counts)}) for {len(labels)} labels and "
            f"{len(group_counts)} classes, got {tuple(scores.shape)}"
        )
    parts = torch.split(scores, rows_at_once(scores.shape[0] * scores.shape[2]), dim=1)
    return evaluate_predictions(predict(parts), labels, group_counts, weight_norms=weight_norms)


def evaluate_predictions(
    found: Predictions, labels: Tensor, group_counts: Tensor, *, weight_norms: Tensor | None = None
) -> Scores:
    """`evaluate_scores` for scores too many to hold at once.

    Raises:
        ValueError: If a label is no class, or shapes disagree.
    """
    num_classes = len(group_counts)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}")
    shape = len(found.classes), num_classes
    if weight_norms is not None and weight_norms.shape != shape:
        raise ValueError(f"weight_norms must be {shape}, got {tuple(weight_norms.shape)}")
    norms = [None] * len(found.classes) if weight_norms is None else list(weight_norms)
    seeds = list(zip(*found, norms, strict=True))
    metrics: dict[str, dict[str, Spread | None]] = {}
    test_counts = torch.bincount(labels, minlength=num_classes)
    for convention in CONVENTIONS:
        groups = shot_groups(group_counts, convention=convention, test_counts=test_counts)
        values = [_metrics(*seed, labels, groups) for seed in seeds]
        metrics[convention] = {name: Spread.over([v[name] for v in values]) for name in METRICS}
    accuracies = [class_accuracy(row, labels, num_classes) for row in found.classes]
    means = torch.stack(accuracies).mean(0).tolist()
    return Scores(metrics, [None if math.isnan(mean) else mean for mean in means])


def _metrics(
    classes: Tensor,
    confidence: Tensor,
    norms: Tensor | None,
    labels: Tensor,
    groups: dict[str, Tensor],
) -> Metrics:
    """The `METRICS` of one seed."""
    many, few = groups["many"], groups["few"]
    counts = torch.bincount(labels, minlength=len(many))
    lengths: Metrics = {} if norms is None else group_means(norms, groups)
    return group_metrics(class_accuracy(classes, labels, len(many)), groups, test_counts=counts) | {
        "macro_f1": class_f1(classes, labels, len(many)).nanmean().item(),
        "calibration_error": calibration_error(confidence, classes == labels).item(),
        "few_as_many": confused_share(classes, labels, source=few, target=many),
        "many_as_few": confused_share(classes, labels, source=many, target=few),
        "norm_many": lengths.get("many"),
        "norm_few": lengths.get("few"),
    }


def group_tightness(
    embeddings: Tensor, labels: Tensor, group_counts: Tensor, *, test_labels: Tensor | None = None
) -> dict[str, Metrics]:
    """Tightness of groups by both conventions, and of all classes.

    Args:
        embeddings: Shape (S, N, D); the mean over seeds is returned.
        labels: Shape (N,).
        group_counts: Shape (C,).
        test_labels: Labels of the test set, shape (M,): they distinguish a class without training images from a
            gap in the labels (`shot_groups`); None: every class counts.
    """
    tightness = [class_tightness(z, labels, len(group_counts)) for z in embeddings]
    values = torch.stack(tightness).mean(0)
    every = {"average": torch.ones_like(group_counts, dtype=torch.bool)}
    test_counts = None
    if test_labels is not None:
        test_counts = torch.bincount(test_labels, minlength=len(group_counts))
    groups = {
        convention: shot_groups(group_counts, convention=convention, test_counts=test_counts)
        for convention in CONVENTIONS
    }
    return {name: group_means(values, masks | every) for name, masks in groups.items()}
