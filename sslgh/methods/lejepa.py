"""LeJEPA."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import sigreg
from sslgh.functional.checks import in_float32
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, mlp_projector

# As in the authors' minimal example; the paper has 1,024.
DIRECTIONS = 256


class LeJEPA(Method):
    """All views of a sample agree, and each view's embeddings are an isotropic Gaussian (arXiv:2511.08544).

    The loss is lambda x SIGReg + (1 - lambda) x invariance, without teacher, predictor or stopped gradient.
    Defaults are those of the authors' minimal example. Where sources differ: lambda weighs SIGReg, here and
    in the paper (other code has it on the invariance, or adds SIGReg to an unweighted one). SIGReg is taken per
    view, not over all views as one batch, and grows with the batch (its factor n). The invariance is a mean over the
    axes too, as in both listings of the authors; the paper's equation sums them. The center of a sample is the mean of
    all its views; the paper's is that of the full views where a transformer gets local crops.

    Args:
        backbone: (N, 3, H, W) -> (N, F); for local crops one that takes several sizes.
        projector: (N, F) -> (N, D).
        lambd: Weight of SIGReg; 0.02 in the minimal example, 0.05 in the paper.

    Raises:
        ValueError: If ``lambd`` is not in (0, 1).

    Attributes:
        step_seed: Seed of this step's directions, shape (): at first from torch's generator, which is
            equal on all ranks where a run is built; from then on a function of the step.
    """

    contrasts_batch = True
    has_sample_losses = False
    multi_crop = True
    projector_spec = ProjectorSpec(mlp_projector, hidden=2048, out=16, layers=3)

    def __init__(self, backbone: nn.Module, projector: nn.Module, *, lambd: float = 0.02) -> None:
        super().__init__()
        if not 0 < lambd < 1:
            raise ValueError(
                f"method.lambd must lie in (0, 1), got {lambd}: at 0 the embeddings collapse to one point, "
                "at 1 views need not agree; the authors' example has 0.02"
            )
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
        self.lambd = lambd
        self.step_seed: Tensor
        self.register_buffer("step_seed", torch.randint(2**62, ()))

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """The two full views in one pass, then all local crops in one."""
        n = len(views[0])
        h = self.backbone(torch.cat(views[:2]))
        crops = [self.backbone(torch.cat(views[2:]))] if len(views) > 2 else []
        z = self.projector(torch.cat([h, *crops])).view(len(views), n, -1)
        gaussian = sigreg(z, self.directions(), weights=weights, gather=gather)
        agreement = weighted_mean(_invariance(z), weights)
        loss = self.lambd * gaussian + (1 - self.lambd) * agreement
        return MethodOutput(loss, None, (z[0], z[1]), h[:n].detach())

    def directions(self) -> Tensor:
        """Random unit vectors of this step, shape (D, 256), the same on every rank and device."""
        generator = torch.Generator().manual_seed(int(self.step_seed))
        drawn = torch.randn(self.embedding_dim, DIRECTIONS, generator=generator)
        return F.normalize(drawn, dim=0).to(self.step_seed.device)

    def after_step(self, done: float) -> None:
        """Other directions for the next step."""
        self.step_seed += 1

    def discard_step(self) -> None:
        """Other directions after a skipped step too: they stay a function of the step."""
        self.step_seed += 1


@in_float32
def _invariance(z: Tensor) -> Tensor:
    """Squared distance of the views (V, N, D) to their mean, per sample (N,): a mean over views and axes."""
    return (z - z.mean(0)).square().mean((0, 2))
