"""MoCo v3."""

from copy import deepcopy

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import info_nce
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, moco_v3_head


class MoCoV3(Method):
    """Each view finds the teacher's other view among the keys of its batch (arXiv:2104.02057).

    2 tau (CE(q1, k2) + CE(q2, k1)), as in Algorithm 1 and the official code. In a transformer of
    timm the patch projection stays as it was drawn, the paper's remedy for its instability; the
    position embedding is timm's, learned (the official code's is fixed).

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        temperature: None: 0.2 for a transformer, else 1, the settings of the official code for ViT
            and ResNet-50.
        momentum: Share of the teacher that stays in a step; rises to 1 along a half cosine. 0.99
            as in the official code (its 1,000 epochs of ResNet-50: 0.996).
        freeze_patch: Train no patch projection; nothing where the backbone has none.

    Raises:
        ValueError: If ``temperature`` is not positive or ``momentum`` lies outside [0, 1).
    """

    contrasts_batch = True
    # As in the official code.
    projector_spec = ProjectorSpec(moco_v3_head, hidden=4096, out=256, layers=2, vit_layers=3)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        temperature: float | None = None,
        momentum: float = 0.99,
        freeze_patch: bool = True,
    ) -> None:
        super().__init__()
        patch = getattr(backbone, "patch_embed", None)
        if temperature is None:
            temperature = 1.0 if patch is None else 0.2
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        if not 0 <= momentum < 1:
            raise ValueError(
                f"method.momentum must lie in [0, 1), got {momentum}; at 1 the teacher stays as it was drawn"
            )
        if freeze_patch and patch is not None:
            deactivate_requires_grad(getattr(patch, "proj", patch))
        self.backbone, self.projector = backbone, projector
        hidden, out = head_widths(projector)
        self.predictor = moco_v3_head(
            out, hidden=hidden, out=out, layers=2, last_norm=patch is not None
        )
        self.teacher = deepcopy(nn.Sequential(self.backbone, self.projector))
        deactivate_requires_grad(self.teacher)
        self.embedding_dim = out
        self.temperature = temperature
        self.momentum = momentum

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Student and teacher each embed both views in one pass."""
        x = torch.cat(views)
        h = self.backbone(x)
        z = self.projector(h)
        z1, z2 = z.chunk(2)
        q1, q2 = self.predictor(z).chunk(2)
        with torch.no_grad():
            k1, k2 = self.teacher(x).chunk(2)
        tau = self.temperature
        both = info_nce(q1, k2, temperature=tau, gather=gather) + info_nce(
            q2, k1, temperature=tau, gather=gather
        )
        per_sample = 2 * tau * both
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)

    def after_step(self, done: float) -> None:
        """Move the teacher by a momentum that reaches 1 at the end of the run."""
        # lightly's schedule ends at max_steps - 1: here a step is the whole run.
        momentum = cosine_schedule(done, 2, self.momentum, 1.0)
        update_momentum(nn.Sequential(self.backbone, self.projector), self.teacher, momentum)
