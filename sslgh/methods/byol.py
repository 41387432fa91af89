"""BYOL."""

from copy import deepcopy

import torch
from lightly.models.modules.heads import BYOLPredictionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from sslgh.distributed import weighted_mean
from sslgh.functional import negative_cosine
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, mlp_projector


class BYOL(Method):
    """Each view predicts what a slower copy of the network makes of the other (arXiv:2006.07733).

    The loss of an image is the paper's (eq. 2, both directions): 2 - 2 cos, summed, in [0, 8]. It is
    4 + 4 times what lightly's examples take (the mean of the two negative cosines), so that rates
    of an optimizer other than LARS do not carry over.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        momentum: Teacher's momentum at the start; it rises to 1 along a cosine over the run.

    Raises:
        ValueError: If ``momentum`` is not in (0, 1).
    """

    projector_spec = ProjectorSpec(mlp_projector, hidden=4096, out=256, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        if momentum == 0:
            raise ValueError(
                "method.momentum is 0, a teacher that is the student itself, with which BYOL is known "
                "to collapse; set it near 1, such as 0.996"
            )
        if not 0 < momentum < 1:
            raise ValueError(
                f"method.momentum must lie in (0, 1), got {momentum}; at 1 the teacher stays as it was drawn"
            )
        self.backbone, self.projector = backbone, projector
        hidden, out = head_widths(projector)
        self.predictor: nn.Module = BYOLPredictionHead(out, hidden, out)
        self.teacher = deepcopy(nn.Sequential(self.backbone, self.projector))
        deactivate_requires_grad(self.teacher)
        self.embedding_dim = out
        self.momentum = momentum

    def after_step(self, done: float) -> None:
        """Move the teacher's parameters; the statistics of its batch norms are its own."""
        # lightly's schedule ends at max_steps - 1: here a step is the whole run.
        momentum = cosine_schedule(done, 2, self.momentum, 1.0)
        update_momentum(nn.Sequential(self.backbone, self.projector), self.teacher, momentum)

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed and predict both views in one pass; the teacher does not learn from the loss."""
        both = torch.cat(views)
        h = self.backbone(both)
        z = self.projector(h)
        p1, p2 = self.predictor(z).chunk(2)
        with torch.no_grad():
            target1, target2 = self.teacher(both).chunk(2)
        per_sample = 4 + 2 * (negative_cosine(p1, target2) + negative_cosine(p2, target1))
        z1, z2 = z.chunk(2)
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
