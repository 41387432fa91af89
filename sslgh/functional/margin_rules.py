"""Rules that turn class shares into the margins and weights of the pairwise-margin family.

Each rule is a row of LA's table of the family (eq. 11, arXiv:2007.07314) and gives what
:func:`margin_cross_entropy` takes. A class of share 0 has row and weight 0 and column -inf: it
leaves the sum. No entry is ever nan.

Shapes: C classes.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sslgh.functional.checks import check_prior, in_float32

# The larger end of the grid of Cui et al. 2019, and the value LDAM's deferred weights take.
BETA = 0.9999


class Margins(NamedTuple):
    """Delta_yy' = row_y + column_y' and alpha_y of LA eq. 11, as margin_cross_entropy takes them."""

    row: Tensor
    column: Tensor
    weight: Tensor


class Rule(Protocol):
    """Class shares (C,), a strength and the size of the training set give the margins."""

    def __call__(
        self, prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None
    ) -> Margins:
        """Margins of shape (C,) each; ``ValueError`` for a negative ``tau`` or shares not (C,)."""


def log_prior(prior: Tensor, tau: float, classes: int) -> Tensor:
    """Tau log prior, shape (C,), with -inf (not nan) where the prior is 0, tau = 0 included."""
    check_prior(prior, classes)
    if tau < 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    return torch.where(prior > 0, tau * prior.log(), -torch.inf)


@in_float32
def plain_margins(prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None) -> Margins:
    """Cross-entropy: no margin, weight 1; reads neither ``tau`` nor ``num_samples``."""
    log_prior(prior, tau, prior.numel())
    zero = torch.zeros_like(prior)
    return Margins(zero, zero.where(prior > 0, -torch.inf), (prior > 0).to(prior))


@in_float32
def balanced_margins(prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None) -> Margins:
    """Weights 1 / (C pi_y) (LA, eq. 4), where C counts the classes of positive share.

    Consistent for the balanced error. Reads neither ``tau`` nor ``num_samples``.

    Examples:
        >>> balanced_margins(torch.tensor([0.75, 0.25])).weight
        tensor([0.6667, 2.0000])
    """
    weight = _present(prior, 1 / prior)
    return plain_margins(prior, tau=tau)._replace(weight=weight / (prior * weight).sum())


@in_float32
def effective_number_margins(
    prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None
) -> Margins:
    """Weights by the effective number of samples (Cui et al. 2019, arXiv:1901.05555).

    alpha_y is proportional to (1 - beta) / (1 - beta^n_y) with beta 0.9999 and n_y = pi_y
    ``num_samples``, and averages to 1 over the classes of positive share. ``tau`` is not read.

    Raises:
        ValueError: If ``num_samples`` is None.

    Examples:
        Few images count by inverse size, more than about 1 / (1 - beta) all count the same:

        >>> prior = torch.tensor([0.75, 0.25])
        >>> effective_number_margins(prior, num_samples=8).weight
        tensor([0.5001, 1.4999])
        >>> effective_number_margins(prior, num_samples=1_000_000).weight
        tensor([1., 1.])
    """
    if num_samples is None:
        raise ValueError("effective-number weights need num_samples, the size of the training set")
    plain = plain_margins(prior, tau=tau)
    # expm1, as 1 - beta^n of a single image has three digits in float32.
    weight = _present(prior, 1 / -torch.expm1(prior * num_samples * math.log(BETA)))
    return plain._replace(weight=weight * plain.weight.sum() / weight.sum())


@in_float32
def adjusted_margins(prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None) -> Margins:
    """Logit adjustment, Delta_yy' = tau log(pi_y' / pi_y) (LA, eq. 10); tau 1 is balanced softmax.

    Consistent for the balanced error with tau 1 only (Theorem 1). Reads no ``num_samples``.

    Examples:
        >>> adjusted_margins(torch.tensor([0.75, 0.25, 0.0])).column.exp()
        tensor([0.7500, 0.2500, 0.0000])
    """
    column = log_prior(prior, tau, prior.numel())
    return plain_margins(prior)._replace(row=_present(prior, -column), column=column)


@in_float32
def weighted_adjusted_margins(
    prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None
) -> Margins:
    """Logit adjustment with weights pi_y^(tau - 1), consistent for every tau (LA, Theorem 1).

    Scaled to average to 1 over samples: the sum of pi_y alpha_y is 1. Runs from the balanced
    weights (tau 0) to the adjusted loss (tau 1). Reads no ``num_samples``.
    """
    weight = _present(prior, prior ** (tau - 1))
    return adjusted_margins(prior, tau=tau)._replace(weight=weight / (prior * weight).sum())


@in_float32
def adaptive_margins(prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None) -> Margins:
    """Margin Delta_yy' = tau pi_y^(-1/4), LDAM-like as in LA's table (eq. 5).

    LDAM itself (arXiv:1906.07413) scales its largest margin to 0.5 on cosine logits; here
    ``tau`` is the constant in front. Not consistent. Reads no ``num_samples``.

    Examples:
        >>> adaptive_margins(torch.tensor([0.9375, 0.0625])).row
        tensor([1.0163, 2.0000])
    """
    return plain_margins(prior, tau=tau)._replace(row=_present(prior, tau * prior**-0.25))


@in_float32
def equalized_margins(
    prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None
) -> Margins:
    """Margin Delta_yy' = tau log pi_y', whatever the own class (LA, eq. 6 with F(z) = z^tau).

    A rare class is pushed down less by the others. Not consistent. Reads no ``num_samples``.
    """
    return adjusted_margins(prior, tau=tau)._replace(row=torch.zeros_like(prior))


def _present(prior: Tensor, values: Tensor) -> Tensor:
    """The values of the classes of positive share, 0 elsewhere."""
    return values.where(prior > 0, 0)
