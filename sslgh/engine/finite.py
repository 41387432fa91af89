"""Numbers that are not finite: found before they are learned, named, and undone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslgh.engine.fsdp import gather_full, local_shard

# What a step's loss is made of, in the order of cause and effect.
PARTS = {
    "embedding_norm": "an embedding",
    "ssl": "the loss of the method",
    "gh": "the GH term",
    "logit": "the loss of the logits",
    "embedding": "the loss of the embeddings",
    "loss": "the loss",
}
# A run that skips this many steps in a row will not recover.
MAX_SKIPPED = 10


class NotFiniteError(RuntimeError):
    """A number became nan or infinite; it is in no checkpoint."""


def gradient_norm(model: nn.Module) -> Tensor:
    """Length of the whole gradient, shape (). Collective: call it on every rank where FSDP has cut the weights."""
    gradients = [held.grad for held in model.parameters() if held.grad is not None]
    norm: Tensor = gather_full(nn.utils.get_total_norm(gradients))
    return norm


def non_finite_reason(
    parts: Sequence[dict[str, Tensor]], norm: Tensor, model: nn.Module
) -> str | None:
    """What of a step is not finite, in words; None where all is. Waits for the device.

    Args:
        parts: Numbers of the parts of its batch, each of shape ().
        norm: Of its gradient.
        model: Whose gradient it is.
    """
    watched = [part[name].float() for part in parts for name in PARTS if name in part]
    if bool(torch.stack([*watched, norm.float()]).isfinite().all()):
        return None
    for name, words in PARTS.items():
        if any(name in part and not bool(part[name].isfinite()) for part in parts):
            return f"{words} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(local_shard(parameter.grad).isfinite().all()):
            return f"the gradient of {name.removeprefix('module.')} is not finite"
    return "the gradient is too long for its precision"


class BufferSnapshot:
    """Batch statistics, queues and centers as they were before a step.

    A forward pass moves them before anyone can see that its numbers are not finite.

    Args:
        module: Whose buffers are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self.live = list(module.buffers())
        self.held = [buffer.clone() for buffer in self.live]

    def keep(self) -> None:
        """Copy the buffers as they are now."""
        for held, live in zip(self.held, self.live, strict=True):
            held.copy_(live)

    def restore(self) -> None:
        """Put them back."""
        for held, live in zip(self.held, self.live, strict=True):
            live.copy_(held)
