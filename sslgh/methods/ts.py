"""Temperature schedules."""

import torch
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, simclr_projector


class TS(Method):
    """SimCLR whose temperature swings (Kukleva et al., arXiv:2303.13664).

    A high temperature parts groups, which helps the frequent classes, a low one parts instances,
    which helps the rare ones: tau = min + (max - min) (1 + cos(2 pi epoch / period)) / 2, constant
    within an epoch, beginning at its maximum.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        temperature_min: Lowest temperature, reached half a period in.
        temperature_max: Highest temperature.
        period: Epochs from one maximum to the next; 400, five times in the 2,000 epochs of
            CIFAR, twice in the 800 of ImageNet-100. A shorter run needs a shorter period.

    Raises:
        ValueError: If the temperatures are not 0 < min <= max, or ``period`` is not positive.
    """

    contrasts_batch = True
    # As in SDCLR's code.
    projector_spec = ProjectorSpec(simclr_projector, hidden=None, out=128, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        temperature_min: float = 0.1,
        temperature_max: float = 1.0,
        period: int = 400,
    ) -> None:
        super().__init__()
        if not 0 < temperature_min <= temperature_max:
            raise ValueError(
                f"method.temperature_min must be positive and at most method.temperature_max, "
                f"got {temperature_min} and {temperature_max}"
            )
        if period < 1:
            raise ValueError(f"method.period must be at least 1 epoch, got {period}")
        self.backbone, self.projector = backbone, projector
        self.embedding_dim = head_widths(projector)[1]
        self.bounds = (temperature_min, temperature_max)
        self.period = period
        self.temperature = temperature_max

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the temperature of the epoch."""
        low, high = self.bounds
        self.temperature = cosine_schedule(epoch, epochs, high, low, period=self.period)

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        per_sample = nt_xent(z1, z2, temperature=self.temperature, gather=gather)
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)
