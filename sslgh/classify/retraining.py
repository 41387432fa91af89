"""Classifiers on top of a finished one: Kang et al., arXiv:1910.09217.

Shapes: S seeds, H heads, N samples, F features, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.classify.ensemble import Classifier
from sslgh.classify.heads import products


class Scales(nn.Module):
    """Learnable weight scaling (sec. 4.2): one factor a class for the logits of finished heads.

    The bias is scaled with the weights, and the factors are not decayed: a decay would pull the
    finished head to zero instead of back to itself.

    Args:
        weight: Class weights, shape (S, H, C, F); they stay.
        bias: Shape (S, H, C).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones_like(bias))
        self._weight, self._bias = weight, bias

    @property
    def weight(self) -> Tensor:
        """Scaled class weights (S, H, C, F)."""
        return self.scale[..., None] * self._weight

    @property
    def bias(self) -> Tensor:
        """Scaled biases (S, H, C)."""
        return self.scale * self._bias

    def embed(self, features: Tensor) -> None:
        """There is no embedding layer."""

    def classify(self, features: Tensor, embeddings: Tensor | None) -> Tensor:
        """Logits (S, H, C, N) of features (S, N, F)."""
        logits = products(self._weight, features) + self._bias[..., None]
        return self.scale[..., None] * logits


def class_means(features: Tensor, labels: Tensor, num_classes: int, seeds: int) -> Classifier:
    """Nearest class mean by cosine (sec. 4.1): nothing is trained, all seeds are alike.

    Args:
        features: Shape (N, F).
        labels: Shape (N,).
        num_classes: C.
        seeds: S.
    """
    members = F.one_hot(labels, num_classes).to(features)
    means = F.normalize(members.T @ features)  # the sum has the direction of the mean
    return Classifier(means.expand(seeds, -1, -1), features.new_zeros(seeds, num_classes))
