"""Health of the embeddings without labels: metrics of a batch, share of GH, and an alarm for collapse.

The metrics are computed on logged steps, on the device, from the samples of all ranks: the values are equal on all.
Shapes: N samples of this rank, D embedding width.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import alignment, effective_rank, uniformity

# On long-tailed digits (64 axes) healthy runs of SimCLR and SimSiam never came below a spread of 0.75 and a
# rank of 11. In the second half of runs of SimSiam without predictor, SimSiam without stop-gradient and SimCLR
# without negatives 87, 96 and 100 % of the lines were below one of these two.
LEAST_SPREAD, LEAST_RANK = 0.25, 1.5
# Lines that must speak against a run, more than those that speak for it. Fresh networks without a
# normalized output begin almost collapsed and spread within some hundred steps.
LINES = 10


@torch.no_grad()
def batch_health(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """Alignment of two views (N, D); spread, rank and uniformity of the first. Collective: call it on every rank.

    Each has shape (); one image alone has only an alignment. Only ``effective_rank`` waits for the device.
    """
    gathered, _ = gather(torch.cat([z1, z2], dim=1).float())
    z1, z2 = gathered.chunk(2, dim=1)
    values = {"alignment": alignment(z1, z2)}
    if len(z1) > 1:
        values["embedding_std"] = spread(z1)
        values["effective_rank"] = effective_rank(normalize(z1))
        values["uniformity"] = uniformity(z1)
    return values


@torch.no_grad()
def embedding_norm(z1: Tensor, z2: Tensor, *, gathered: bool) -> Tensor:
    """Mean length () of both views (N, D); ``gathered``, a collective: the mean over ranks is that over images."""
    lengths = torch.cat([z1, z2]).float().norm(dim=1)
    return weighted_mean(lengths) if gathered else lengths.mean()


def spread(z: Tensor) -> Tensor:
    """Standard deviation of normalized z (N, D) times sqrt(D): 1 fills the sphere (SimSiam, fig. 2, arXiv:2011.10566)."""
    return normalize(z.float()).std(0, correction=0).mean() * math.sqrt(z.shape[1])


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
        self.count.add_(1 if collapsed else -1).clamp_(0, LINES)
        if self.count == 0:
            self.triggered.fill_(False)
        if self.count < LINES or self.triggered:
            return None
        self.triggered.fill_(True)
        return self._warning(spread, rank)

    def _warning(self, spread: float, rank: float) -> str:
        return (
            f"the embeddings have collapsed: almost all images are embedded alike (embedding_std {spread:.2f}, "
            f"where 1 fills the sphere and 0 is one point; effective rank {rank:.1f} of {self.dim}); start again "
            "with a lower optim.lr, a longer warm-up or a larger train.batch_size, and with the method's own "
            "defaults for what keeps images apart (predictor, momentum, temperature, loss weights)"
        )


def gh_share(loss_ssl: Tensor, loss_gh: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Share of GH in the pull on the embeddings: |g_gh| / (|g_gh| + |g_ssl|). Collective: call it on every rank.

    g is the gradient of a loss with respect to the embeddings of all ranks; if the two views are chunks of
    one tensor, with respect to that tensor, since a predictor may be applied to it. Call it before the
    backward pass, on logged steps only: it goes back through both losses down to the embeddings. The
    graph is kept.

    Args:
        loss_ssl: Loss of the method, shape (), as `MethodOutput.loss`.
        loss_gh: Weighted GH term, shape (), as the harmonizer returns it.
        z1: Local embeddings of the first view, shape (N, D), that both losses are computed from.
        z2: Local embeddings of the second view, shape (N, D).

    Returns:
        Shape (), from 0 (GH is off) to 1, without gradient.

    Raises:
        RuntimeError: If the method's loss does not go through these embeddings.
    """
    if not loss_gh.requires_grad:
        return z1.new_zeros((), dtype=torch.float32)
    sources = [z1 if z1._base is None else z1._base]
    if z2._base is None or z2._base is not z1._base:
        sources.append(z2 if z2._base is None else z2._base)
    squares = torch.stack([_square(loss, sources) for loss in (loss_gh, loss_ssl)])
    gathered, _ = gather(squares[None])
    norms = gathered.sum(0).sqrt()
    return norms[0] / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)


def _square(loss: Tensor, embeddings: list[Tensor]) -> Tensor:
    """Squared norm of the gradient of a loss with respect to the embeddings."""
    gradients = torch.autograd.grad(loss, embeddings, retain_graph=True, allow_unused=True)
    found = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    if not found:
        raise RuntimeError(
            "the loss of the method does not depend on the embeddings it returns; compute it from these tensors"
        )
    return torch.stack(found).sum()
