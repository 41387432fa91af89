"""A pull between mates that is stronger for rare classes.

Shapes: N samples, D width, C classes.
"""

from torch import Tensor

from sslgh.functional.contrast_set import contrast_set
from sslgh.functional.nt_xent import Gather
from sslgh.functional.precision import in_float32
from sslgh.functional.shapes import check_prior


@in_float32
def embedding_pull(
    embeddings: Tensor,
    target: Tensor,
    prior: Tensor,
    *,
    tau: float,
    proxies: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Mean squared distance to the mates, weighed by the rarity of the class; no rivals.

    One reading of *Embedding and Logit Margins* (arXiv:2204.13208), whose exact form was not
    at hand: the distribution of the embeddings is regularized and nothing else. For an anchor i
    of class y with mates P(i), d the distance on the unit sphere:

        w_y * mean over p in P(i) of d_ip^2

    with w_y proportional to pi_y^(-tau/4) and 1 in the mean over samples, sum of pi_y w_y = 1.
    Over a class, d^2 averages to the class's tightness: 2 n / (n - 1) times the squared
    distance to the class's mean, without which two mates would be pulled half as hard as many.

    Args:
        embeddings: Shape (N, D), of any length; L2-normalized inside.
        target: Classes, shape (N,), each with a positive prior.
        prior: Class shares, shape (C,).
        tau: Strength of the weights; 0 pulls all classes alike.
        proxies: One more member for each class, shape (C, D); never anchors.
        gather: Stacks a tensor over all processes and tells which row is this process's
            first. Gradients must flow through it. None: this process alone.

    Returns:
        Shape (N,). 0 for an anchor without a mate: average over :func:`has_mate`.

    Raises:
        ValueError: If shapes do not fit or ``tau`` is negative.

    Examples:
        Two mates at a right angle, d^2 = 2; the third has no mate.

        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
        >>> embedding_pull(z, torch.tensor([0, 0, 1]), torch.tensor([0.7, 0.3]), tau=0.0)
        tensor([2., 2., 0.])
    """
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    check_prior(prior, prior.numel())
    gathered = contrast_set(embeddings, target, classes=len(prior), proxies=proxies, gather=gather)
    prior = prior.to(gathered.anchors)
    rarity = (prior ** (-tau / 4)).where(prior > 0, 0)
    weight = rarity * prior.sum() / (prior * rarity).sum()
    squares = 2 - 2 * gathered.anchors @ gathered.members.T
    return weight[target] * gathered.mean_over_mates(squares)
