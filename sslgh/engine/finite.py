"""Names of the values of a step that may become NaN or infinite."""

from collections.abc import Sequence

from torch import Tensor, nn

from sslgh.distributed import local_shard

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


def first_not_finite(parts: Sequence[dict[str, Tensor]], model: nn.Module) -> str:
    """The first value that is NaN or infinite, in words.

    Args:
        parts: Metrics of each micro-batch, each of shape ().
        model: Module that holds the gradient.
    """
    for name, words in WATCHED.items():
        if any(name in part and not bool(part[name].isfinite()) for part in parts):
            return f"{words} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(local_shard(parameter.grad).isfinite().all()):
            return f"the gradient of {name.removeprefix('module.')} is not finite"
    return "the gradient is too long for its precision"
