"""SwAV."""

import torch
import torch.nn.functional as F
from lightly.models.utils import normalize_weight
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import swapped_assignment
from sslgh.functional.checks import in_float32
from sslgh.methods.base import Method, MethodOutput
from sslgh.methods.queue import Queue
from sslgh.models import ProjectorSpec, head_widths, mlp_projector


class SwAV(Method):
    """Views predict each other's assignment to learned prototypes (arXiv:2006.09882).

    The prototypes are unit vectors without a bias (lightly's have one), made so at the start and
    after every step. The codes are those of the batch of all processes and of the queue.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        prototypes: Number of prototypes K.
        temperature: Temperature of the predictions.
        epsilon: Entropic regularization of the codes.
        freeze_prototypes_epochs: Epochs in which the prototypes stay as drawn; the paper's 313 steps
            are its first epoch.
        queue: Embeddings of earlier batches that share in the partition, for batches much smaller
            than K: 3840 in the paper for batches of 256. 0: none, as in its large runs.
        queue_start: Epoch, from 0, from which the queue fills; it is used once it is full.

    Raises:
        ValueError: If a value is out of range, or, in training, the queue smaller than the batch.
    """

    contrasts_batch = True
    multi_crop = True
    projector_spec = ProjectorSpec(mlp_projector, hidden=2048, out=128, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        freeze_prototypes_epochs: int = 1,
        queue: int = 0,
        queue_start: int = 15,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("epsilon", epsilon)):
            if not value > 0:
                raise ValueError(f"method.{name} must be positive, got {value}")
        if prototypes < 2:
            raise ValueError(f"method.prototypes must be 2 or more, got {prototypes}")
        if queue < 0:
            raise ValueError(f"method.queue must not be negative, got {queue}; 0 means none")
        self.backbone, self.projector = backbone, projector
        out = self.embedding_dim = head_widths(projector)[1]
        self.prototypes = nn.Linear(out, prototypes, bias=False)
        normalize_weight(self.prototypes.weight)
        self.queues = nn.ModuleList(Queue(queue, out) for _ in range(2 if queue else 0))
        self.queued: Tensor
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self.temperature, self.epsilon = temperature, epsilon
        self.freeze_prototypes_epochs, self.queue_start = freeze_prototypes_epochs, queue_start
        self.epoch = 0  # not saved: begin_epoch is called again on resume

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the epoch, which selects freezing and the filling of the queue."""
        self.epoch = epoch

    def after_step(self, done: float) -> None:
        """Bring the prototypes back to the sphere."""
        normalize_weight(self.prototypes.weight)

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """The two full views in one pass, then all local crops in one."""
        n = len(views[0])
        h = self.backbone(torch.cat(views[:2]))
        crops = [self.backbone(torch.cat(views[2:]))] if len(views) > 2 else []
        z = self.projector(torch.cat([h, *crops]))
        prototypes = self.prototypes.weight
        if self.epoch < self.freeze_prototypes_epochs:
            prototypes = prototypes.detach() + 0 * prototypes  # DDP waits for a gradient, if of 0
        scores = _scores(z, prototypes).view(len(views), n, -1)
        z1, z2 = z[: 2 * n].chunk(2)
        per_sample = swapped_assignment(
            scores,
            temperature=self.temperature,
            epsilon=self.epsilon,
            queue=self._queue_scores(z1, z2) if self.training and self.queues else None,
            gather=gather,
        )
        features = h[:n].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)

    @torch.no_grad()
    def _queue_scores(self, *embeddings: Tensor) -> Tensor | None:
        """Scores of the queues (2, Q, K) once they are full; then the batch joins them."""
        gathered, _ = gather(torch.cat(embeddings, dim=1))
        queues = [queue for queue in self.queues if isinstance(queue, Queue)]
        queues[0].check(len(gathered))  # from the first step on, not only when the queue starts
        if self.epoch < self.queue_start:
            return None
        scores = None
        if int(self.queued) >= len(queues[0].rows):
            scores = torch.stack([_scores(queue.rows, self.prototypes.weight) for queue in queues])
        for queue, batch in zip(queues, gathered.chunk(2, dim=1), strict=True):
            queue.push(batch)
        self.queued += len(gathered)
        return scores


@in_float32
def _scores(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines (N, K), not rounded by autocast: they are divided by epsilon."""
    return F.linear(F.normalize(z), prototypes)
