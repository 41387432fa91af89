"""What a self-supervised method is to the engine: weights go in, embeddings come out."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class MethodOutput(NamedTuple):
    """Result of one step.

    Attributes:
        loss: Shape (), with gradient; the mean over processes is the global loss.
        per_sample: Loss of each own sample, shape (N,); None where the loss is no sum.
        embeddings: Online projector outputs of the two full views, each (N, D), with gradient,
            not normalized: what GH sees.
        features: Backbone outputs of the first view, shape (N, F), without gradient.
    """

    loss: Tensor
    per_sample: Tensor | None
    embeddings: tuple[Tensor, Tensor]
    features: Tensor


class Method(nn.Module):
    """A backbone with a self-supervised task on top; the hooks do nothing unless overridden.

    Attributes:
        contrasts_batch: Whether the loss of a sample looks at the other samples of its batch.
        has_sample_losses: Whether its loss is a weighted mean of one loss a sample.
        multi_crop: Whether it takes local crops after the two full views.
    """

    backbone: nn.Module
    embedding_dim: int
    contrasts_batch: ClassVar[bool] = False
    has_sample_losses: ClassVar[bool] = True
    multi_crop: ClassVar[bool] = False

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before an epoch's first step, and again when a run is resumed within it.

        Args:
            epoch: From 0.
            epochs: Of the run.
        """

    def after_step(self, done: float) -> None:
        """Called after every optimizer step.

        Args:
            done: Share of the run's steps that were taken, in (0, 1].
        """

    def skip_step(self) -> None:
        """Called instead of `after_step` where a step's numbers were not finite.

        The engine puts the buffers back; what else the forward passes left waiting is dropped here.
        """
