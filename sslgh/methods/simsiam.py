"""SimSiam."""

import torch
from torch import Tensor, nn

from sslgh.distributed import weighted_mean
from sslgh.functional import negative_cosine
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, simsiam_predictor, simsiam_projector


class SimSiam(Method):
    """Each view predicts the other, without negatives (arXiv:2011.10566).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        predictor_hidden: Bottleneck of the predictor; None: D / 4, the paper's ratio.
    """

    # The paper's appendix has 2 layers for CIFAR.
    projector_spec = ProjectorSpec(simsiam_projector, hidden=2048, out=2048, layers=3)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        predictor_hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        out = self.embedding_dim = head_widths(projector)[1]
        if predictor_hidden is None:
            predictor_hidden = max(out // 4, 1)
        if predictor_hidden < 1 or out < 2:
            raise ValueError(
                f"method.predictor_hidden must be at least 1 and model.projector.out at least 2, got "
                f"{predictor_hidden} and {out}"
            )
        self.predictor = simsiam_predictor(out, hidden=predictor_hidden)

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed and predict both views in one pass (SimSiam, eq. 4)."""
        h = self.backbone(torch.cat(views))
        z = self.projector(h)
        p1, p2 = self.predictor(z).chunk(2)
        z1, z2 = z.chunk(2)
        per_sample = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
