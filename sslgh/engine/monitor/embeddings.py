"""Health of a step: metrics of a batch's embeddings without labels.

Computed on logged steps, on the device, from the samples of all ranks: the values are equal on all.
Shapes: N samples of this rank, D embedding width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import alignment, uniformity
from sslgh.functional.effective_rank import effective_rank


@torch.no_grad()
def batch_health(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """Spread, rank, alignment and uniformity of the normalized embeddings. Collective: call it on every rank.

    Args:
        z1: Local embeddings of the first view, shape (N, D), not necessarily normalized.
        z2: Local embeddings of the second view, shape (N, D).

    Returns:
        Shape () each. ``alignment`` of the two views; for more than one image ``embedding_std``,
        ``effective_rank`` and ``uniformity`` of the first view. Only ``effective_rank`` waits for
        the device.
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
    """Mean length of the embeddings of both views.

    Args:
        z1: Local embeddings of the first view, shape (N, D).
        z2: Local embeddings of the second view, shape (N, D).
        gathered: Whether to weigh by the ranks' numbers of images, a collective: the mean of the
            returned values over the ranks is then the mean over all images.

    Returns:
        Shape ().
    """
    lengths = torch.cat([z1, z2]).float().norm(dim=1)
    return weighted_mean(lengths) if gathered else lengths.mean()


def spread(z: Tensor) -> Tensor:
    """Mean over the axes of the standard deviation of normalized embeddings (N, D), times sqrt(D).

    Near 1 for embeddings that fill the sphere, 0 for collapsed ones (SimSiam, fig. 2, arXiv:2011.10566).

    Examples:
        Two opposite points deviate by 1 on one of four axes, and the root of 4 is 2:

        >>> spread(torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]))
        tensor(0.5000)
    """
    return normalize(z.float()).std(0, correction=0).mean() * math.sqrt(z.shape[1])


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
