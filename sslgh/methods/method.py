"""What a self-supervised method is to the engine: weights go in, embeddings come out."""

from typing import NamedTuple

from torch import Tensor, nn


class MethodOutput(NamedTuple):
    """Result of one step.

    Attributes:
        loss: Shape (), with gradient; the mean over processes is the global loss.
        per_sample: Loss of each own sample, shape (N,); None where the loss is no sum.
        embeddings: Online projector outputs of the two full views, each (N, D), with gradient,
            not normalised: what GH sees.
    """

    loss: Tensor
    per_sample: Tensor | None
    embeddings: tuple[Tensor, Tensor]


class Method(nn.Module):
    """A backbone with a self-supervised task on top. No behaviour to inherit."""

    backbone: nn.Module
    embedding_dim: int
