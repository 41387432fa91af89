"""The focal contrastive baseline."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import focal_nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import simclr_projector


class Focal(Method):
    """SimCLR with the focal loss over the batch, a baseline of GH (arXiv:2310.17622).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        features: F.
        hidden: Width of the projector's hidden layers; None: F, as in the GH code.
        out: Embedding width D.
        layers: Linear layers of the projector.
        temperature: Of the softmax; 0.2 as in the GH code.
        gamma: Focus; 2 as in the GH code, 0 is SimCLR.

    Raises:
        ValueError: If ``temperature`` is not positive or ``gamma`` is negative.
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
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        if not gamma >= 0:
            raise ValueError(f"method.gamma must not be negative, got {gamma}")
        self.backbone = backbone
        self.projector = simclr_projector(features, hidden=hidden, out=out, layers=layers)
        self.embedding_dim = out
        self.temperature = temperature
        self.gamma = gamma

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        per_sample = focal_nt_xent(
            z1, z2, temperature=self.temperature, gamma=self.gamma, gather=gather
        )
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
