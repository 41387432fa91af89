"""Decoupled contrastive learning."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import decoupled_nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import simclr_projector


class DCL(Method):
    """SimCLR with the positive out of the denominator (arXiv:2110.06848).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        features: F.
        hidden: Width of the projector's hidden layers; None: F.
        out: Embedding width D; 128 as in SimCLR.
        layers: Linear layers of the projector.
        temperature: 0.1, as in lightly and the public code that it follows.
        weighted: Weigh positives by how much the views differ (DCLW).
        sigma: Of those weights; 0.5 as in lightly and the same code.

    Raises:
        ValueError: If ``temperature`` or ``sigma`` is not positive.
    """

    contrasts_batch = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        features: int,
        hidden: int | None = None,
        out: int = 128,
        layers: int = 2,
        temperature: float = 0.1,
        weighted: bool = False,
        sigma: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("sigma", sigma)):
            if not value > 0:
                raise ValueError(f"method.{name} must be positive, got {value}")
        self.backbone = backbone
        self.projector = simclr_projector(features, hidden=hidden, out=out, layers=layers)
        self.embedding_dim = out
        self.temperature = temperature
        self.sigma = sigma if weighted else None

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        per_sample = decoupled_nt_xent(
            z1, z2, temperature=self.temperature, sigma=self.sigma, gather=gather
        )
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
