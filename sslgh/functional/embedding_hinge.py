"""A hinge between mates and the nearest rival, with a margin that grows for rare classes.

Shapes: N samples, D width, C classes.
"""

import torch
from torch import Tensor

from sslgh.functional.contrast_set import contrast_set
from sslgh.functional.nt_xent import Gather
from sslgh.functional.precision import in_float32
from sslgh.functional.shapes import check_prior


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
        gather: Stacks a tensor over all processes and tells which row is this process's
            first. Gradients must flow through it. None: this process alone.

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
