"""SimCLR."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, simclr_projector


class SimCLR(Method):
    """Backbone and projector trained with NT-Xent (arXiv:2002.05709).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        temperature: Temperature of NT-Xent; 0.2 as in SDCLR, BCL and GH (SimCLR on ImageNet: 0.1).

    Raises:
        ValueError: If ``temperature`` is not positive.
    """

    contrasts_batch = True
    # As in the GH code.
    projector_spec = ProjectorSpec(simclr_projector, hidden=None, out=128, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
        self.temperature = temperature

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass, so that batch statistics cannot tell them apart."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        per_sample = nt_xent(z1, z2, temperature=self.temperature, gather=gather)
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
