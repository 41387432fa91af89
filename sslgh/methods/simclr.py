"""SimCLR."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import simclr_projector


class SimCLR(Method):
    """Backbone and projector trained with NT-Xent (arXiv:2002.05709).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        features: F.
        hidden: Width of the projector's hidden layers; None: F, as in the GH code.
        out: Embedding width D.
        layers: Linear layers of the projector.
        temperature: Of NT-Xent; 0.2 as in SDCLR, BCL and GH (SimCLR on ImageNet: 0.1).

    Raises:
        ValueError: If ``temperature`` is not positive.
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
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        self.backbone = backbone
        self.projector = simclr_projector(features, hidden=hidden, out=out, layers=layers)
        self.embedding_dim = out
        self.temperature = temperature

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass, so that batch statistics cannot tell them apart."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        per_sample = nt_xent(z1, z2, temperature=self.temperature, gather=gather)
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
