"""Projection and prediction heads: lightly's, shaped by the recipe."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from lightly.models.modules.heads import (
    MoCoProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    VICRegProjectionHead,
)
from torch import nn


class ProjectorSpec(NamedTuple):
    """Default projector of a method: its kind, and its shape in the paper.

    Attributes:
        head: Function ``(features, *, hidden, out, layers, **options) -> nn.Module``.
        hidden: Width of the hidden layers; None: F.
        out: Embedding width D.
        layers: Number of linear layers.
        vit_layers: The same for a transformer (a backbone with ``patch_embed``); None: ``layers``.
        options: Further keywords of ``head`` that the recipe sets under ``method:``.
    """

    head: Callable[..., nn.Module]
    hidden: int | None
    out: int
    layers: int
    vit_layers: int | None = None
    options: tuple[str, ...] = ()

    def build(self, backbone: nn.Module, **settings: int | bool | None) -> nn.Module:
        """The projector (N, F) -> (N, D) of a backbone; ``settings`` replace the paper's shape."""
        layers = self.vit_layers if hasattr(backbone, "patch_embed") else None
        shape = {"hidden": self.hidden, "out": self.out, "layers": layers or self.layers}
        return self.head(backbone.num_features, **(shape | settings))


def head_widths(head: nn.Module) -> tuple[int, int]:
    """Hidden and output width of a head: those of its first and of its last linear layer."""
    widths = [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)]
    return widths[0], widths[-1]


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


def contrast_head(features: int, *, hidden: int, out: int) -> nn.Module:
    """Linear-BN-ReLU-Linear, after BCL's public code; (N, F) -> (N, D), not normalized.

    One is the projector of the views, another, with parameters of its own, makes the prototypes of
    the classifier's weights (C, F). There the batch of the norm is the C classes. They are the same
    rows on every process, so in training the global norm that ``use_global_batch_norm`` puts in its place has
    the statistics of one process; only its running variance is smaller, by (C - 1) / (C - 1/P).
    """
    first = (features, hidden, nn.BatchNorm1d(hidden), nn.ReLU())
    head: nn.Module = ProjectionHead([first, (hidden, out, None, None)])
    return head


def mlp_projector(features: int, *, hidden: int, out: int, layers: int) -> nn.Module:
    """(Linear-BN-ReLU-)...Linear: two layers are BYOL's and SwAV's, three Barlow Twins' and VICReg's; (N, F) -> (N, D)."""
    head: nn.Module = VICRegProjectionHead(features, hidden, out, num_layers=layers)
    return head


def dino_projector(
    features: int, *, hidden: int, out: int, layers: int, batch_norm: bool = False
) -> nn.Module:
    """(Linear(-BN)-GELU-)...Linear up to DINO's bottleneck, weights N(0, 0.02^2); (N, F) -> (N, D).

    The layers of lightly's ``DINOProjectionHead`` before its last. That last one uses a weight norm which
    torch has deprecated and ``deepcopy`` refuses, so that no teacher could be made of it.
    """
    widths = [features] + [hidden] * (layers - 1)
    blocks = [
        (one, two, nn.BatchNorm1d(two) if batch_norm else None, nn.GELU())
        for one, two in pairwise(widths)
    ]
    head: nn.Module = ProjectionHead([*blocks, (hidden, out, None, None)])
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return head


def moco_projector(features: int, *, hidden: int | None, out: int, layers: int) -> nn.Module:
    """(Linear-ReLU-)...Linear, without batch norm; (N, F) -> (N, D)."""
    head: nn.Module = MoCoProjectionHead(features, hidden or features, out, num_layers=layers)
    return head


def moco_v3_head(
    features: int, *, hidden: int, out: int, layers: int, last_norm: bool = True
) -> nn.Module:
    """(Linear-BN-ReLU-)...Linear(-BN), the last BN without scale and shift; (N, F) -> (N, D).

    As the official code has it, which leaves the last one out of a ResNet's predictor. lightly's ``MoCoProjectionHead`` would give the
    last norm a scale and a shift.
    """
    widths = [features] + [hidden] * (layers - 1)
    blocks = [(one, two, nn.BatchNorm1d(two), nn.ReLU()) for one, two in pairwise(widths)]
    norm = nn.BatchNorm1d(out, affine=False) if last_norm else None
    # lightly would give a bias to a layer without a norm.
    head: nn.Module = ProjectionHead([*blocks, (hidden, out, norm, None, False)])
    return head
