"""Barlow Twins."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather
from sslgh.functional import barlow_twins
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, mlp_projector


class BarlowTwins(Method):
    """The axes of two views' embeddings agree, and say each something else (arXiv:2103.03230).

    The moments are those of the batch of all processes, with the instance weights as frequencies.
    The code that trained the published network also multiplied the loss by 0.024. LARS undoes that for
    matrices, not for biases and norms, which later versions of the code give a rate of their own (0.0048
    against 0.2) instead; here all learn at one rate.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        lambd: Weight of the redundancy term; 5e-3 in the paper (its code: 5.1e-3).

    Raises:
        ValueError: If ``lambd`` is not positive.
    """

    contrasts_batch = True
    has_sample_losses = False
    projector_spec = ProjectorSpec(mlp_projector, hidden=8192, out=8192, layers=3)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        lambd: float = 5e-3,
    ) -> None:
        super().__init__()
        if not lambd > 0:
            raise ValueError(f"method.lambd must be positive, got {lambd}")
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
        self.lambd = lambd

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass; the loss is the same number on every process."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        loss = barlow_twins(z1, z2, lambd=self.lambd, weights=weights, gather=gather)
        return MethodOutput(loss, None, (z1, z2), h[: len(z1)].detach())
