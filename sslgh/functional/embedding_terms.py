"""Losses between embeddings whose strength follows the class shares; all called the same way.

Three readings of *ELM: Embedding and Logit Margins for Long-Tail Learning* (arXiv:2204.13208), whose
exact form was not at hand: a margin, a hinge and a pull. The margin transfers the pairwise-margin
family of logit adjustment from logits to pairs of embeddings: replace the samples of each class by
one proxy and it is the logit-adjusted loss.

Shapes: N samples, D width, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_positive, check_prior, in_float32
from sslgh.functional.contrast_set import contrast_set
from sslgh.functional.margin_rules import log_prior
from sslgh.functional.nt_xent import Gather


def has_mate(labels: Tensor, *, gather: Gather | None = None) -> Tensor:
    """Which samples share their class with another of the batch, on any rank.

    Args:
        labels: Shape (N,).
        gather: Stacks a tensor over all ranks. None: this rank alone.

    Returns:
        Shape (N,), bool. The losses over pairs of one class average over these anchors.

    Examples:
        >>> has_mate(torch.tensor([3, 5, 3]))
        tensor([ True, False,  True])
    """
    gathered = gather(labels)[0] if gather else labels
    return (labels[:, None] == gathered).sum(1) > 1


@in_float32
def embedding_margin(
    embeddings: Tensor,
    target: Tensor,
    prior: Tensor,
    *,
    tau: float,
    temperature: float = 0.1,
    proxies: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Soft-triplet loss with a margin that grows for rare anchors and common rivals.

    For an anchor i of class y with mates P(i), s the cosine and T the temperature:

        mean over p in P(i) of
            log(1 + sum over y' != y of (pi_y' / pi_y)^tau * mean over k in y' of exp((s_ik - s_ip) / T))

    Rivals are averaged within their class: a plain sum would count the prior twice, once by
    sampling and once by the margin.

    Args:
        embeddings: Shape (N, D), of any length; L2-normalized inside.
        target: Classes, shape (N,), each with a positive prior.
        prior: Class shares, shape (C,).
        tau: Strength of the margin; 0 is a plain class-averaged contrast.
        temperature: T, positive.
        proxies: One more member for each class, shape (C, D), so that no anchor is without a
            mate and no class without a rival. They are never anchors.
        gather: Stacks a tensor over all ranks and returns which row is this rank's
            first. Gradients must flow through it. None: this rank alone.

    Returns:
        Shape (N,). 0 for an anchor without a mate: average over :func:`has_mate`.

    Raises:
        ValueError: If shapes do not fit or ``temperature`` is not positive.

    Examples:
        Mates that coincide, and a rival of another class that does too: log(1 + 1).

        >>> same, target = torch.ones(3, 2), torch.tensor([0, 0, 1])
        >>> embedding_margin(same, target, torch.tensor([0.5, 0.5]), tau=1.0, temperature=0.1)
        tensor([0.6931, 0.6931, 0.0000])
    """
    check_positive(temperature=temperature)
    shift = log_prior(prior.to(embeddings), tau, prior.numel())
    gathered = contrast_set(embeddings, target, classes=len(prior), proxies=proxies, gather=gather)

    similarity = gathered.anchors @ gathered.members.T / temperature  # (N, M)
    # Log of each rival's weight: its class's margin, shared out among the class's members.
    share = (shift - gathered.class_sizes(len(prior)).log())[gathered.labels]
    # A class without share leaves by the mask: -inf in a sum has no gradient where all are.
    aside = gathered.same | (share == -torch.inf)
    weighted = similarity + share - shift[target, None]
    rivals = weighted.masked_fill(aside, -torch.inf).logsumexp(1, keepdim=True)
    return gathered.mean_over_mates(F.softplus(rivals - similarity))


@in_float32
def embedding_hinge(
    embeddings: Tensor,
    target: Tensor,
    prior: Tensor,
    *,
    tau: float,
    proxies: Tensor | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Triplet hinge on the nearest rival, with the margins of LDAM between embeddings.

    One reading of *Embedding and Logit Margins* (arXiv:2204.13208), whose exact form was not
    at hand. For an anchor i of class y with mates P(i), d the distance on the unit sphere:

        mean over p in P(i) of max(0, m_y + d_ip^2 - min over rivals k of d_ik^2)

    with m_y = tau (pi_min / pi_y)^(1/4), pi_min the smallest positive share: with tau 1 the
    rarest class keeps 0.5 in the cosine, LDAM's largest margin (arXiv:1906.07413). The nearest
    rival is what :func:`embedding_margin` comes to for a temperature toward 0.

    Args:
        embeddings: Shape (N, D), of any length; L2-normalized inside.
        target: Classes, shape (N,), each with a positive prior.
        prior: Class shares, shape (C,).
        tau: Largest margin, in squared distance; not negative.
        proxies: One more member for each class, shape (C, D); never anchors.
        gather: Stacks a tensor over all ranks and returns which row is this rank's
            first. Gradients must flow through it. None: this rank alone.

    Returns:
        Shape (N,). 0 for an anchor without a mate: average over :func:`has_mate`.

    Raises:
        ValueError: If shapes do not fit or ``tau`` is negative.

    Examples:
        Mates that coincide, and a rival that does too: the margins are left, and the rare class
        has the larger one.

        >>> same, target = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])
        >>> embedding_hinge(same, target, torch.tensor([16 / 17, 1 / 17]), tau=1.0)
        tensor([0.5000, 0.5000, 1.0000, 1.0000])
    """
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    check_prior(prior, prior.numel())
    gathered = contrast_set(embeddings, target, classes=len(prior), proxies=proxies, gather=gather)
    prior = prior.to(gathered.anchors)
    rarest = prior.masked_fill(prior == 0, torch.inf).min()
    margin = tau * (rarest / prior[target, None]) ** 0.25

    similarity = gathered.anchors @ gathered.members.T  # half of 2 - d^2
    aside = gathered.same | (prior == 0)[gathered.labels]
    nearest = similarity.masked_fill(aside, -torch.inf).amax(1, keepdim=True)
    return gathered.mean_over_mates((margin + 2 * (nearest - similarity)).clamp(min=0))


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
        gather: Stacks a tensor over all ranks and returns which row is this rank's
            first. Gradients must flow through it. None: this rank alone.

    Returns:
        Shape (N,). 0 for an anchor without a mate: average over :func:`has_mate`.

    Raises:
        ValueError: If shapes do not fit or ``tau`` is negative.

    Examples:
        Two mates at a right angle, d^2 = 2; the third has no mate.

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
