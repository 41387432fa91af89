"""NNCLR."""

import torch
from lightly.models.modules.heads import NNCLRPredictionHead
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import info_nce
from sslgh.methods.base import Method, MethodOutput
from sslgh.methods.queue import Queue
from sslgh.models import ProjectorSpec, head_widths, simclr_projector


class NNCLR(Method):
    """The positive is the nearest neighbor among earlier embeddings (arXiv:2104.14548).

    (L(NN(z1), p2) + L(NN(z2), p1)) / 2, as in the paper's pseudocode (recalled; solo-learn has the
    same): the neighbor of a view, without gradient, finds the prediction of the other view among
    those of the batch. The embeddings of view 1, of all processes, enter the queue after the
    optimizer's step. (lightly's example takes NT-Xent, in which the neighbors and the predictions
    are compared with their own kind as well.)

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        projector: (N, F) -> (N, D).
        predictor_hidden: Width of the predictor's hidden layer.
        temperature: 0.1, as recalled from the paper.
        queue: Embeddings K among which neighbors are sought; at least the global batch. 98,304
            as recalled from the paper.

    Raises:
        ValueError: If ``temperature`` or ``queue`` is not positive; at the first forward if the
            global batch is larger than the queue.
    """

    contrasts_batch = True
    # Lightly's NNCLRProjectionHead.
    projector_spec = ProjectorSpec(simclr_projector, hidden=2048, out=256, layers=3)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        predictor_hidden: int = 4096,
        temperature: float = 0.1,
        queue: int = 98304,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        self.backbone, self.projector = backbone, projector
        out = self.embedding_dim = head_widths(projector)[1]
        # With 3 layers lightly's NNCLRProjectionHead, whose depth is fixed.
        self.predictor = NNCLRPredictionHead(out, predictor_hidden, out)
        self.queue = Queue(queue, out)
        self.temperature = temperature
        self._fresh: list[Tensor] = []  # of this step; empty where a checkpoint is taken

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Neighbors are sought in the queue as it was before this step, without the batch."""
        h = self.backbone(torch.cat(views))
        z = self.projector(h)
        z1, z2 = z.chunk(2)
        p1, p2 = self.predictor(z).chunk(2)
        newest, _ = gather(z1.detach())
        self.queue.check(len(newest))
        if self.training:
            self._fresh.append(newest)
        n1, n2 = self.queue.nearest(z.detach()).chunk(2)
        tau = self.temperature
        both = info_nce(n1, p2, temperature=tau, gather=gather) + info_nce(
            n2, p1, temperature=tau, gather=gather
        )
        per_sample = both / 2
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)

    def after_step(self, done: float) -> None:
        """Renew the queue."""
        for newest in self._fresh:
            self.queue.push(newest)
        self._fresh.clear()

    def discard_step(self) -> None:
        """Forget the rows that wait for the queue."""
        self._fresh.clear()
