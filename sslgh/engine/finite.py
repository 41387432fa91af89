"""NaN/inf detection before the optimizer step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslgh.engine.fsdp import gather_full, local_shard

# The metrics that must be finite, in the order of cause and effect.
WATCHED = {
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
    """A number became NaN or infinite; it is in no checkpoint."""


def gradient_norm(model: nn.Module) -> Tensor:
    """Norm of the whole gradient, shape (). Collective with FSDP."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return gather_full(nn.utils.get_total_norm(gradients))


def non_finite_reason(
    parts: Sequence[dict[str, Tensor]], grad_norm: Tensor, model: nn.Module
) -> str | None:
    """Which value of a step is NaN or infinite, in words; None if none is. Waits for the device.

    Args:
        parts: Metrics of each micro-batch, each of shape ().
        grad_norm: Norm of the gradient, shape ().
        model: Module that holds the gradient.
    """
    watched = [part[name].float() for part in parts for name in WATCHED if name in part]
    finite = bool(torch.stack([*watched, grad_norm.float()]).isfinite().all())
    return None if finite else _first_not_finite(parts, model)


def _first_not_finite(parts: Sequence[dict[str, Tensor]], model: nn.Module) -> str:
    for name, words in WATCHED.items():
        if any(name in part and not bool(part[name].isfinite()) for part in parts):
            return f"{words} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(local_shard(parameter.grad).isfinite().all()):
            return f"the gradient of {name.removeprefix('module.')} is not finite"
    return "the gradient is too long for its precision"
