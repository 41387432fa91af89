"""SwAV's loss: each view predicts to which prototypes the other view is assigned.

Shapes: N images here, M over all ranks, V views of which 2 are full, K prototypes, Q queued.
"""

import torch
from torch import Tensor

from sslgh.functional.checks import check_positive, in_float32
from sslgh.functional.nt_xent import Gather
from sslgh.functional.sinkhorn import sinkhorn


@in_float32
def swapped_assignment(
    scores: Tensor,
    *,
    temperature: float,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Swapped prediction of equally partitioned codes (SwAV, eq. 2 and 3, arXiv:2006.09882).

    The codes of a full view are surrogate labels by Sinkhorn with the uniform prior over the batch of
    all ranks and the queue. Each of its iterations updates the prototypes, then the
    images, so that the codes of an image sum to 1 and the partition is equal up to convergence: the
    public code's order. Every other view predicts them. No gradient flows through the codes.

    Args:
        scores: Cosines of embeddings and prototypes, shape (V, N, K), the full views first.
        temperature: Temperature of the predictions; positive.
        epsilon: Entropic regularization of Sinkhorn; positive.
        iterations: Iterations of Sinkhorn.
        queue: Cosines of earlier embeddings of the two full views, shape (2, Q, K), on all ranks
            the same. They share in the partition and predict nothing.
        gather: Stacks a tensor over all ranks and returns which row is this rank's first.
            None: this rank alone.

    Returns:
        Shape (N,): for each image the mean over the 2 (V - 1) pairs of a full view and another.

    Raises:
        ValueError: If shapes do not fit or a parameter is not positive.

    Examples:
        Scores that prefer no prototype: codes and predictions are uniform, the loss is log K.

        >>> swapped_assignment(torch.zeros(2, 3, 4), temperature=0.1)
        tensor([1.3863, 1.3863, 1.3863])
    """
    check_positive(temperature=temperature)
    if scores.ndim != 3 or len(scores) < 2:
        raise ValueError(
            f"scores must be (V, N, K) with two full views or more, got {tuple(scores.shape)}"
        )
    images, prototypes = scores.shape[1:]
    local = scores[:2].detach().transpose(0, 1).contiguous()
    gathered, first = gather(local) if gather else (local, 0)
    partitioned = gathered.transpose(0, 1)  # (2, M, K)
    if queue is not None:
        if queue.ndim != 3 or len(queue) != 2 or queue.shape[2] != prototypes:
            raise ValueError(f"queue must be (2, Q, {prototypes}), got {tuple(queue.shape)}")
        partitioned = torch.cat([partitioned, queue.detach().to(scores.dtype)], dim=1)
    codes = sinkhorn(
        partitioned, scores.new_ones(prototypes), epsilon=epsilon, iterations=iterations
    )
    return other_views_cross_entropy(codes[:, first : first + images], scores / temperature)


def other_views_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy over all pairs of a target and the prediction of another view.

    Args:
        targets: Assignments of the first T views, shape (T, N, K), rows summing to 1.
        logits: Logits of all V views, shape (V, N, K).

    Returns:
        Shape (N,).
    """
    pairs = -torch.einsum("tnk,vnk->tvn", targets, logits.log_softmax(2))
    same = torch.eye(*pairs.shape[:2], dtype=torch.bool, device=pairs.device)
    return pairs[~same].mean(0)
