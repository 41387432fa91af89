"""The pairwise-margin family of cross-entropies, and its member with logit adjustment.

Shapes: N samples, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_labels, check_prior, in_float32
from sslgh.functional.margin_rules import log_prior

Margin = Tensor | tuple[Tensor, Tensor]


@in_float32
def margin_cross_entropy(
    logits: Tensor, target: Tensor, *, margin: Margin | None = None, weight: Tensor | None = None
) -> Tensor:
    """Pairwise-margin cross-entropy (LA, eq. 11, arXiv:2007.07314).

    alpha_y log(1 + sum over y' != y of exp(Delta_yy' + f_y' - f_y)). Members: cross-entropy
    (Delta 0), LDAM-like (Delta from pi_y), equalized (from pi_y'), logit adjusted
    (tau log(pi_y' / pi_y)).

    Args:
        logits: f, shape (N, C).
        target: Classes y, shape (N,), in [0, C).
        margin: Delta. A pair (row, column), each (C,), means Delta_yy' = row_y + column_y' and
            never builds a matrix; -inf in ``column`` takes a class out of the sum. A tensor is
            (C, C), or (N, C) with one row per sample; (C, C) is meant where N = C. The entry of
            the true class is never read.
        weight: alpha, shape (C,).

    Returns:
        Shape (N,).

    Raises:
        ValueError: If shapes do not fit.

    Examples:
        A margin of log 3 on the other class turns log(1 + 1) into log(1 + 3):

        >>> logits, target = torch.zeros(1, 2), torch.tensor([0])
        >>> margin_cross_entropy(logits, target, margin=torch.full((2, 2), 3.0).log())
        tensor([1.3863])
    """
    check_labels(logits, target)
    local = logits.gather(1, target[:, None])
    if isinstance(margin, tuple):
        row, column = margin
        check_prior(row, logits.shape[1])
        check_prior(column, logits.shape[1])
        logits = logits + column
        local = local - row[target, None]
    elif margin is not None:
        logits = logits + _rows(margin, logits, target)
    loss = F.cross_entropy(logits.scatter(1, target[:, None], local), target, reduction="none")
    if weight is None:
        return loss
    check_prior(weight, logits.shape[1])
    return weight[target] * loss


def _rows(margin: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """The margin row of each sample, (N, C)."""
    classes = logits.shape[1]
    if margin.shape == (classes, classes):
        return margin[target]
    if margin.shape == logits.shape:
        return margin
    raise ValueError(
        f"margin must be ({classes}, {classes}), {tuple(logits.shape)} or a pair of ({classes},), "
        f"got {tuple(margin.shape)}"
    )


@in_float32
def logit_adjusted_cross_entropy(
    logits: Tensor, target: Tensor, prior: Tensor, *, tau: float = 1.0
) -> Tensor:
    """Cross-entropy with logits shifted by the log prior in training (LA, eq. 10, arXiv:2007.07314).

    Consistent for the balanced error with tau = 1. Predict with the bare logits: a post-hoc
    shift on top would adjust twice.

    Args:
        logits: Shape (N, C).
        target: Shape (N,), classes with a positive prior.
        prior: Class shares, shape (C,). A class of share 0 leaves the sum.
        tau: Strength; 0 is cross-entropy.

    Returns:
        Shape (N,).

    Raises:
        ValueError: If shapes do not fit or ``tau`` is negative.

    Examples:
        A rare class must beat a common one by the log of their ratio to break even:

        >>> prior = torch.tensor([0.75, 0.25])
        >>> logit_adjusted_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), prior)  # log 4
        tensor([1.3863])
    """
    check_labels(logits, target)
    column = log_prior(prior.to(logits), tau, logits.shape[1])
    return margin_cross_entropy(logits, target, margin=(-column, column))


@in_float32
def adjust_logits(logits: Tensor, prior: Tensor, *, tau: float = 1.0) -> Tensor:
    """Logits of a model trained without adjustment, adjusted afterwards (LA, eq. 9, arXiv:2007.07314).

    Args:
        logits: Shape (N, C).
        prior: Class shares of the training set, shape (C,). A class of share 0 gets -inf: it
            is never predicted.
        tau: Strength; 0 changes nothing but that.

    Returns:
        f - tau log prior, shape (N, C).

    Raises:
        ValueError: If shapes do not fit or ``tau`` is negative.

    Examples:
        >>> adjust_logits(torch.zeros(1, 3), torch.tensor([0.5, 0.5, 0.0]))
        tensor([[0.6931, 0.6931,   -inf]])
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be (N, C), got {tuple(logits.shape)}")
    shift = log_prior(prior.to(logits), tau, logits.shape[1])
    return torch.where(shift == -torch.inf, -torch.inf, logits - shift)
