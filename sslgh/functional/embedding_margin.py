"""A margin between embeddings, after *ELM: Embedding and Logit Margins for Long-Tail Learning*.

After the paper (arXiv:2204.13208); its exact form was not at hand. The form below transfers
the pairwise-margin family of logit adjustment from logits to pairs of embeddings: replace the
samples of each class by one proxy and it is the logit-adjusted loss.

Shapes: N samples, D width, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.contrast_set import contrast_set
from sslgh.functional.margins import log_prior
from sslgh.functional.nt_xent import Gather
from sslgh.functional.precision import in_float32
from sslgh.functional.shapes import check_positive


def has_mate(labels: Tensor, *, gather: Gather | None = None) -> Tensor:
    """Which samples share their class with another of the batch, on any process.

    Args:
        labels: Shape (N,).
        gather: Stacks a tensor over all processes. None: this process alone.

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
    temperature: float,
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
        gather: Stacks a tensor over all processes and tells which row is this process's
            first. Gradients must flow through it. None: this process alone.

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
