"""InfoNCE: a query finds its key among others, of its batch or of a queue.

Shapes: N queries here, M over all ranks, K rows in a queue, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_positive, check_views, in_float32
from sslgh.functional.nt_xent import Gather


@in_float32
def info_nce(
    queries: Tensor, keys: Tensor, *, temperature: float, gather: Gather | None = None
) -> Tensor:
    """Each query against the keys of the batch (MoCo v3, eq. 1, arXiv:2104.02057).

    Row i of ``keys`` is the positive of row i of ``queries``; every other key, on any rank,
    is a negative. Queries are never compared with each other, unlike NT-Xent's anchors.

    Args:
        queries: Shape (N, D). Need not be normalized.
        keys: Shape (N, D). Gradients flow to them, too: detach what is to stand still.
        temperature: Divides the cosine similarities; positive.
        gather: Stacks the keys over all ranks, with gradient, and returns which row is this
            rank's first. None: this rank alone.

    Returns:
        Shape (N,), without MoCo v3's factor 2 * temperature.

    Raises:
        ValueError: If the shapes differ or ``temperature`` is not positive.

    Examples:
        Three indistinguishable images: log 3.

        >>> info_nce(torch.ones(3, 8), torch.ones(3, 8), temperature=0.2)
        tensor([1.0986, 1.0986, 1.0986])
    """
    check_views(queries, keys)
    check_positive(temperature=temperature)
    local = F.normalize(keys)
    gathered, first = gather(local) if gather else (local, 0)
    logits = (F.normalize(queries) / temperature) @ gathered.T
    positive = torch.arange(first, first + len(keys), device=keys.device)
    return F.cross_entropy(logits, positive, reduction="none")


@in_float32
def queued_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Each query's own key against the keys of earlier batches (MoCo, eq. 1, arXiv:1911.05722).

    Args:
        queries: Shape (N, D). Need not be normalized.
        keys: Row i is the positive of query i, shape (N, D). Need not be normalized.
        queue: The negatives, shape (K, D), of unit length; no gradient flows to them.
        temperature: Divides the cosine similarities; positive.

    Returns:
        Shape (N,).

    Raises:
        ValueError: If shapes do not fit or ``temperature`` is not positive.

    Examples:
        The key and the 3 rows of the queue are alike: log 4.

        >>> rows = torch.eye(8)[[0, 0, 0]]
        >>> queued_info_nce(rows[:1], rows[:1], rows, temperature=0.2)
        tensor([1.3863])
    """
    check_views(queries, keys)
    check_positive(temperature=temperature)
    if queue.ndim != 2 or queue.shape[1] != queries.shape[1] or not len(queue):
        raise ValueError(
            f"the queue must be (K, {queries.shape[1]}) like the queries, got {tuple(queue.shape)}"
        )
    q = F.normalize(queries) / temperature
    positive = (q * F.normalize(keys)).sum(1)
    negatives = (q @ queue.detach().to(q.dtype).T).logsumexp(1)
    # Not logits of one (N, 1 + K) matrix: at K = 65,536 its copy costs as much as the product.
    return -F.logsigmoid(positive - negatives)
