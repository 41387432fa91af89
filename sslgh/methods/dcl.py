"""Decoupled contrastive learning."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import decoupled_nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, simclr_projector


class DCL(Method):
    """SimCLR with the positive out of the denominator (arXiv:2110.06848).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        temperature: Temperature of the softmax; 0.1, as in lightly and the public code that it follows.
        weighted: Weigh positives by how much the views differ (DCLW).
        sigma: Width of the weighting; 0.5 as in lightly and the same code.

    Raises:
        ValueError: If ``temperature`` or ``sigma`` is not positive.
    """

    contrasts_batch = True
    # As SimCLR's.
    projector_spec = ProjectorSpec(simclr_projector, hidden=None, out=128, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        temperature: float = 0.1,
        weighted: bool = False,
        sigma: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("sigma", sigma)):
            if not value > 0:
                raise ValueError(f"method.{name} must be positive, got {value}")
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
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
