"""VICReg."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather
from sslgh.functional import vicreg
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, mlp_projector


class VICReg(Method):
    """Two views agree, every axis varies, and no two axes vary together (arXiv:2105.04906).

    The moments are those of the batch of all processes, with the instance weights as frequencies.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        invariance: Weight of the mean squared distance of the views; lambda in the paper.
        variance: Weight of the hinge on the standard deviations; mu.
        covariance: Weight of the squared covariances; nu.

    Raises:
        ValueError: If a weight is negative, or ``variance`` zero, with which VICReg collapses.
    """

    contrasts_batch = True
    has_sample_losses = False
    projector_spec = ProjectorSpec(mlp_projector, hidden=8192, out=8192, layers=3)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("invariance", invariance), ("covariance", covariance)):
            if not value >= 0:
                raise ValueError(f"method.{name} must not be negative, got {value}")
        if not variance > 0:
            raise ValueError(
                f"method.variance must be positive, got {variance}: without it nothing keeps the "
                "embeddings from collapsing to one point; the paper has 25"
            )
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
        self.factors = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass; the loss is the same number on every process."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        loss = vicreg(z1, z2, **self.factors, weights=weights, gather=gather)
        return MethodOutput(loss, None, (z1, z2), h[: len(z1)].detach())
