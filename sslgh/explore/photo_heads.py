"""Heads on frozen features as affine maps to log likelihoods, and what they predict out of fold.

Shapes: N photos, F features, C kinds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslgh.classify import Head, HeadEnsemble, train_heads
from sslgh.classify.ensemble import FeatureScaler
from sslgh.classify.selection import NEVER
from sslgh.evaluation.protocols import CONVERGED_HEADS

OBJECTIVES = ("ce", "la", "elm")
# Objectives that decide for the shares of the labels; the others decide as if all kinds were equally common.
DECIDES_BY_SHARES = frozenset({"ce"})


class AffineHead(NamedTuple):
    """Features to log likelihoods of the kinds, up to a constant per photo.

    Whatever the objective, the scores are brought to equal shares: those of cross-entropy, which estimate the
    posterior under the shares of the labels, are divided by the shares; those of the logit-adjusted loss are of equal
    shares already (arXiv:2007.07314, eq. 9 and 10). An embedding layer is linear, so its head is one map too.

    Attributes:
        weight: Shape (C, F).
        bias: Shape (C,).
    """

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Log likelihoods (N, C) of features (N, F)."""
        return torch.nn.functional.linear(features.to(self.weight), self.weight, self.bias)


def folder_scaler(features: Tensor) -> FeatureScaler:
    """Moments by which features (N, F) of all photos of a folder, labeled or not, are standardized.

    A few labeled photos do not know how far a feature varies: one that they all but lack would move a photo that has it
    by hundreds of their standard deviations. So that a feature which hardly any photo has does not either, the median
    of the variances is added to each.
    """
    variance, mean = (row.double() for row in torch.var_mean(features, dim=0, correction=0))
    scale = (variance + variance.median()).sqrt()
    return FeatureScaler(mean, torch.where(scale > 0, scale, 1.0))


def trained_heads(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    objectives: Sequence[str] = OBJECTIVES,
    scaler: FeatureScaler | None = None,
) -> dict[str, AffineHead]:
    """Converged heads by objective.

    Args:
        features: Shape (N, F).
        labels: Shape (N,). A kind without one has the bias -inf and is never predicted.
        num_classes: C, at least 2.
        objectives: Objectives whose scores can be brought to equal shares.
        scaler: What standardizes the features; None: their own moments.

    Raises:
        ValueError: If a head gives scores that are neither finite nor -inf.
    """
    heads = [Head(name) for name in objectives]
    trained = train_heads(
        features.double(),
        labels,
        num_classes=num_classes,
        heads=heads,
        training=CONVERGED_HEADS,
        scaler=scaler,
    )
    return {head.objective: _affine(trained, head, features.shape[1]) for head in heads}


def _affine(trained: HeadEnsemble, head: Head, width: int) -> AffineHead:
    equal = torch.full_like(trained.prior.double(), 1 / len(trained.prior))
    points = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
    scores = trained.scores(head, points, equal)[0]
    if (scores.isnan() | scores.isposinf()).any():
        raise ValueError(f"the head {head.objective} gives scores that are not finite")
    never = scores[0].isneginf()
    weight = (scores[1:] - scores[0]).T.masked_fill(never[:, None], 0)
    return AffineHead(weight.contiguous(), scores[0].clone())


def out_of_fold_scores(
    features: Tensor,
    labels: Tensor,
    part: Tensor,
    num_classes: int,
    scaler: FeatureScaler | None = None,
) -> dict[str, Tensor]:
    """Log likelihoods (N, C) by objective, of each photo by heads that have not seen its fold; nan where ``part`` is -1.

    Args:
        features: Shape (N, F).
        labels: Shape (N,).
        part: Fold of each photo, shape (N,).
        num_classes: C.
        scaler: As for `trained_heads`.
    """
    nowhere = torch.full((len(labels), num_classes), torch.nan, dtype=torch.float64)
    found = {name: nowhere.clone() for name in OBJECTIVES}
    for fold in sorted(set(part[part != NEVER].tolist())):
        out = part == fold
        heads = trained_heads(features[~out], labels[~out], num_classes, scaler=scaler)
        for name, head in heads.items():
            found[name][out] = head.scores(features[out])
    return found


def decision(scores: Tensor, objective: str, prior: Tensor) -> Tensor:
    """Kinds (N,) that the objective itself decides for, of log likelihoods (N, C) and the shares (C,) of the labels."""
    if objective in DECIDES_BY_SHARES:
        scores = scores + prior.to(scores).log()
    return scores.argmax(1)
