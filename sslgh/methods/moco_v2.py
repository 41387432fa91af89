"""MoCo v2."""

from copy import deepcopy

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import queued_info_nce
from sslgh.methods.base import Method, MethodOutput
from sslgh.methods.queue import Queue
from sslgh.models import ProjectorSpec, head_widths, moco_projector


class MoCoV2(Method):
    """View 1 finds the teacher's view 2 among keys of earlier batches (arXiv:2003.04297).

    The teacher is the moving average of the student. Its keys of a step, of all processes,
    enter the queue after the optimizer's step. The loss goes one way, as in the official code;
    the student embeds view 2 as well, for GH, in the same pass, which one way could do without.

    The papers shuffle the images over the GPUs before the teacher sees them: were a query and its
    key normalized by the statistics of the same few images, those would tell the key without a
    look at the image. Here nothing is shuffled. With the statistics of the global batch
    (``model.batch_norm: global``, the default) query and key share those of the whole batch and
    the rows of the queue carry those of earlier ones, a hint that fades as the batch grows; with
    ``local`` it is that of a process's part, the case the papers warn of.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        temperature: 0.2 as in MoCo v2 (v1: 0.07).
        queue: Keys K that serve as negatives; at least the global batch.
        momentum: Share of the teacher that stays in a step.

    Raises:
        ValueError: If ``temperature`` or ``queue`` is not positive or ``momentum`` lies outside
            (0, 1); at the first forward if the global batch is larger than the queue.
    """

    # As in the official code.
    projector_spec = ProjectorSpec(moco_projector, hidden=None, out=128, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        temperature: float = 0.2,
        queue: int = 65536,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        if not 0 < momentum < 1:
            raise ValueError(
                f"method.momentum must lie in (0, 1), got {momentum}; at 0 MoCo is known to fail, at 1 the teacher "
                "stays as it was drawn; set it near 1, such as 0.999"
            )
        self.backbone, self.projector = backbone, projector
        out = self.embedding_dim = head_widths(projector)[1]
        self.teacher = deepcopy(nn.Sequential(self.backbone, self.projector))
        deactivate_requires_grad(self.teacher)
        self.queue = Queue(queue, out)
        self.temperature = temperature
        self.momentum = momentum
        self._fresh: list[Tensor] = []  # keys of this step; empty where a checkpoint is taken

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Queries and keys against the queue as it was before this step."""
        h = self.backbone(torch.cat(views))
        z1, z2 = self.projector(h).chunk(2)
        with torch.no_grad():
            own = self.teacher(views[1])
            keys, _ = gather(own)
        self.queue.check(len(keys))
        if self.training:
            self._fresh.append(keys)
        per_sample = queued_info_nce(z1, own, self.queue.rows, temperature=self.temperature)
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)

    def after_step(self, done: float) -> None:
        """Move the teacher and renew the queue, in whose rows no gradient waits any more."""
        student = nn.Sequential(self.backbone, self.projector)
        update_momentum(student, self.teacher, self.momentum)
        for keys in self._fresh:
            self.queue.push(keys)
        self._fresh.clear()

    def discard_step(self) -> None:
        """Forget the rows that wait for the queue."""
        self._fresh.clear()
