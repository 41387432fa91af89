"""The interface of a self-supervised method: views and weights in, loss and embeddings out."""

from typing import ClassVar, NamedTuple, Self

from torch import Tensor, nn

from sslgh.models import ProjectorSpec


class MethodOutput(NamedTuple):
    """Result of one step.

    Attributes:
        loss: Shape (), with gradient; the mean over processes is the global loss.
        per_sample: Loss per local sample, shape (N,); None if the loss does not decompose over samples.
        embeddings: Online projector outputs of the two full views, each (N, D), with gradient,
            not normalized: what GH sees.
        features: Backbone outputs of the first view, shape (N, F), without gradient.
    """

    loss: Tensor
    per_sample: Tensor | None
    embeddings: tuple[Tensor, Tensor]
    features: Tensor

    def detach(self) -> Self:
        """The same without the graph, which the backward frees."""
        z1, z2 = self.embeddings
        return self._replace(
            loss=self.loss.detach(),
            per_sample=None if self.per_sample is None else self.per_sample.detach(),
            embeddings=(z1.detach(), z2.detach()),
            features=self.features.detach(),
        )


class Method(nn.Module):
    """A backbone and a projector with a self-supervised task; the hooks do nothing unless overridden.

    The constructor is ``(backbone, projector, *, ...)``; its keyword arguments are the recipe's ``method:``.

    Attributes:
        projector_spec: Projector of the paper, which the recipe's ``model.projector`` can change.
        contrasts_batch: Whether the loss of a sample looks at the other samples of its batch.
        has_sample_losses: Whether its loss is a weighted mean of per-sample losses.
        multi_crop: Whether it takes local crops after the two full views.
    """

    backbone: nn.Module
    embedding_dim: int
    projector_spec: ClassVar[ProjectorSpec]
    contrasts_batch: ClassVar[bool] = False
    has_sample_losses: ClassVar[bool] = True
    multi_crop: ClassVar[bool] = False

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the first step of an epoch, counted from 0, and when a run is resumed within it."""

    def after_step(self, done: float) -> None:
        """Called after every optimizer step; ``done``: completed share of the run's steps, in (0, 1]."""

    def discard_step(self) -> None:
        """Called instead of `after_step` if the step was not finite.

        The engine restores the buffers; state that ``forward`` buffered elsewhere is dropped here.
        """
