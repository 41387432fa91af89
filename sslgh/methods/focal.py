"""The focal contrastive baseline."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import focal_nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, simclr_projector


class Focal(Method):
    """SimCLR with the focal loss over the batch, a baseline of GH (arXiv:2310.17622).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        temperature: Temperature of the softmax; 0.2 as in the GH code.
        gamma: Focus; 2 as in the GH code, 0 is SimCLR.

    Raises:
        ValueError: If ``temperature`` is not positive or ``gamma`` is negative.
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
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        if not gamma >= 0:
            raise ValueError(f"method.gamma must not be negative, got {gamma}")
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
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
