"""Trained heads, ready to decide.

Shapes: S seeds, N samples, F features, D input width of a head, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.classify.objectives import OBJECTIVES


class Head(NamedTuple):
    """What is trained, and how strongly.

    Attributes:
        objective: A key of `OBJECTIVES`.
        tau: Strength of the adjustment, margin or normalization; read where the objective takes one.
        lr: Learning rate of the first epoch, later ones in proportion; None: the training's.
        weight_decay: L2; None: the training's.
    """

    objective: str
    tau: float = 1.0
    lr: float | None = None
    weight_decay: float | None = None


class Classifier(NamedTuple):
    """The parameters of one head for S seeds."""

    weight: Tensor  # (S, C, D)
    bias: Tensor  # (S, C)
    embedding: Tensor | None = None  # (S, D, F)


class FeatureScaler(NamedTuple):
    """What is subtracted from features and what then divides them, (F,) each."""

    mean: Tensor
    scale: Tensor


class HeadEnsemble:
    """Heads that share their features.

    Attributes:
        heads: The heads asked for, in that order.
        prior: Class shares of the training samples, shape (C,).
        num_samples: Number of training samples.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        classifiers: Mapping[Head, Classifier],
        *,
        prior: Tensor,
        num_samples: int,
        scaler: FeatureScaler,
    ) -> None:
        self.heads = tuple(heads)
        self.prior = prior
        self.num_samples = num_samples
        self._classifiers = dict(classifiers)
        self._scaler = scaler

    def classifier(self, head: Head) -> Classifier:
        """The trained parameters of a head, before its decision, for standardized features."""
        if head not in self._classifiers:
            raise ValueError(f"{head} was not trained; there are {', '.join(map(str, self.heads))}")
        return self._classifiers[head]

    def embeddings(self, head: Head, features: Tensor) -> Tensor | None:
        """Embeddings (S, N, D) of features (N, F); None for a head without an embedding layer."""
        embedding = self.classifier(head).embedding
        if embedding is None:
            return None
        return torch.matmul(self._ready(features), embedding.mT)

    def scores(self, head: Head, features: Tensor, test_prior: Tensor | None = None) -> Tensor:
        """Scores (S, N, C), the largest of which is the prediction.

        Args:
            head: One of ``heads``.
            features: Shape (N, F).
            test_prior: Class shares to decide for, shape (C,); the scores are then the log posterior up to a
                constant. None: as the objective decides.

        Returns:
            -inf for a class without training samples.

        Raises:
            ValueError: If the head is not there, the width is another than in training, features are not
                finite, or the scores cannot be brought to ``test_prior``.
        """
        objective = OBJECTIVES[head.objective]
        weight, bias, embedding = self.classifier(head)
        shift = objective.adjustment(
            self.prior, tau=head.tau, num_samples=self.num_samples, test_prior=test_prior
        )
        rows = self._ready(features)
        if objective.decision == "means":
            rows = F.normalize(rows)
        elif objective.decision == "normalized":
            weight, bias = normalized(weight, tau=head.tau), torch.zeros_like(bias)
        if embedding is not None:
            rows = rows @ embedding.mT
        return rows @ weight.mT + bias[:, None] + shift

    def predict(
        self,
        head: Head,
        features: Tensor,
        test_prior: Tensor | None = None,
        *,
        batch_size: int = 8192,
    ) -> Tensor:
        """Predicted classes (S, N) of features (N, F); arguments as in :meth:`scores`."""
        parts = torch.split(features, batch_size)
        return torch.cat([self.scores(head, part, test_prior).argmax(-1) for part in parts], dim=1)

    def weight_norms(self, head: Head) -> Tensor | None:
        """Lengths (S, C) of the class weights that decide; None where class means do."""
        decision = OBJECTIVES[head.objective].decision
        weight = self.classifier(head).weight
        if decision == "means":
            return None
        if decision == "normalized":
            weight = normalized(weight, tau=head.tau)
        length: Tensor = torch.linalg.vector_norm(weight, dim=-1)
        return length

    def _ready(self, features: Tensor) -> Tensor:
        mean, scale = self._scaler
        if features.ndim != 2 or features.shape[1] != len(mean):
            raise ValueError(
                f"these heads were trained on features (N, {len(mean)}), got {tuple(features.shape)}"
            )
        check_finite(features)
        return (features.to(mean) - mean) / scale


def check_labeled(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise ``ValueError``, in one sentence, unless features (N, F) are finite and labels (N,) lie in 0..C - 1."""
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


def check_finite(features: Tensor) -> None:
    """Raise ``ValueError`` where features (N, F) hold nan or inf."""
    if bad := (~features.isfinite().all(1)).sum().item():
        raise ValueError(
            f"features must be finite, but {bad} of {len(features)} rows hold nan or inf"
        )


def normalized(weight: Tensor, *, tau: float) -> Tensor:
    """Class weights divided by their length to the power tau (Kang et al., sec. 4.2, arXiv:1910.09217).

    With tau 1 directions alone decide, with tau 0 nothing changes. The bias has no part in it:
    a head of tau 0 decides without one.

    Args:
        weight: Shape (..., C, D).
        tau: Strength.

    Examples:
        >>> normalized(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), tau=1.0)
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])
    """
    length = torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
    shortest = torch.finfo(weight.dtype).tiny
    return weight / torch.pow(length.clamp(min=shortest), tau)
