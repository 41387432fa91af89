"""Projection and prediction heads: lightly's, shaped by the recipe."""

from lightly.models.modules.heads import (
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from torch import nn


def simclr_projector(features: int, *, hidden: int | None, out: int, layers: int) -> nn.Module:
    """Linear-BN-ReLU-Linear-BN, as in the GH code; (N, F) -> (N, D)."""
    head: nn.Module = SimCLRProjectionHead(features, hidden or features, out, num_layers=layers)
    return head


def simsiam_projector(features: int, *, hidden: int, out: int, layers: int) -> nn.Module:
    """Linear-BN(-ReLU-Linear-BN)..., the last BN without scale and shift; (N, F) -> (N, D).

    Raises:
        ValueError: If ``layers`` is neither 3 (the paper) nor 2 (its CIFAR runs).
    """
    if layers == 3:
        head: nn.Module = SimSiamProjectionHead(features, hidden, out)
        return head
    if layers != 2:
        raise ValueError(f"model.projector.layers must be 2 or 3 for simsiam, got {layers}")
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out, bias=False),
        nn.BatchNorm1d(out, affine=False),
    )


def simsiam_predictor(out: int, *, hidden: int) -> nn.Module:
    """Bottleneck Linear-BN-ReLU-Linear; (N, D) -> (N, D)."""
    head: nn.Module = SimSiamPredictionHead(out, hidden, out)
    return head
