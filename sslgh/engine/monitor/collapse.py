"""Alarm for collapsed embeddings."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# On long-tailed digits (64 axes) healthy runs of SimCLR and SimSiam never came below a spread of 0.75 and a
# rank of 11. In the second half of runs of SimSiam without predictor, SimSiam without stop-gradient and SimCLR
# without negatives 87, 96 and 100 % of the lines were below one of these two.
LEAST_SPREAD, LEAST_RANK = 0.25, 1.5
# Lines that must speak against a run, more than those that speak for it. Fresh networks without a
# normalized output begin almost collapsed and spread within some hundred steps.
LINES = 10


class CollapseAlarm(nn.Module):
    """Watches the logged numbers and returns one warning when the embeddings stay collapsed.

    Every line that looks collapsed counts one up, every other one down, within 0 and 10: at 10 the alarm
    is triggered, once, and is armed again when the count is back at 0. Both are buffers: a resumed run warns
    as an uninterrupted one does.

    Args:
        dim: Embedding width D, for the warning.

    Examples:
        >>> alarm = CollapseAlarm(128)
        >>> warnings = [alarm({"embedding_std": 0.01, "effective_rank": 1.1}) for _ in range(20)]
        >>> [line for line, warning in enumerate(warnings, 1) if warning]
        [10]
    """

    count: Tensor
    triggered: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("triggered", torch.tensor(False))

    def forward(self, values: Mapping[str, float]) -> str | None:
        """The warning, or None. Lines without the numbers of `batch_health` do not count."""
        if "embedding_std" not in values or "effective_rank" not in values:
            return None
        spread, rank = values["embedding_std"], values["effective_rank"]
        collapsed = spread < LEAST_SPREAD or rank < LEAST_RANK
        count = min(max(int(self.count) + (1 if collapsed else -1), 0), LINES)
        self.count.fill_(count)
        if count == 0:
            self.triggered.fill_(False)
        if count < LINES or bool(self.triggered):
            return None
        self.triggered.fill_(True)
        return (
            f"the embeddings have collapsed: almost all images are embedded alike (embedding_std {spread:.2f}, "
            f"where 1 fills the sphere and 0 is one point; effective rank {rank:.1f} of {self.dim}); start again "
            "with a lower optim.lr, a longer warm-up or a larger train.batch_size, and with the method's own "
            "defaults for what keeps images apart (predictor, momentum, temperature, loss weights)"
        )
