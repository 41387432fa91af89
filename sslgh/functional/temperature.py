"""One temperature for class scores, so that their softmax is a probability.

Shapes: N samples, C classes.
"""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from sslgh.functional.checks import check_labels

# Sharper or flatter than this no classifier is made.
LOWEST, HIGHEST = 0.02, 50.0


def fitted_temperature(scores: Tensor, labels: Tensor, prior: Tensor) -> float:
    """The temperature T at which softmax(scores / T + log prior) explains the labels best.

    Temperature scaling (Guo et al., arXiv:1706.04599, section 4.2) of the likelihood alone: scores that say nothing
    leave the prior as it is, and the temperature is the same whatever the prior at prediction. Targets are smoothed
    as Platt (1999) does, so that it stays finite where every prediction is right: each label counts (N + 1) / (N + 2),
    and the prior the rest.

    Args:
        scores: Log likelihoods up to a constant per sample, shape (N, C), of samples that were not trained on.
        labels: Shape (N,).
        prior: Class shares of these samples, shape (C,), positive.

    Raises:
        ValueError: If shapes disagree or there is no sample.

    Examples:
        Of four equal scores three are right: a probability of (3/4) (5/6) + (1/2) (1/6) is meant, whose logit is 0.89:

        >>> scores = torch.tensor([[4.0, 0.0]] * 4)
        >>> round(4 / fitted_temperature(scores, torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.5])), 2)
        0.89
    """
    check_labels(scores, labels)
    if not len(labels) or prior.shape != scores.shape[1:]:
        raise ValueError(
            f"scores must be (N, C), N > 0, with C shares, got {tuple(scores.shape)} and {tuple(prior.shape)}"
        )
    scores, shift = scores.double(), prior.double().log()
    kept = (len(labels) + 1) / (len(labels) + 2)
    target = (1 - kept) * prior.double().expand_as(scores)
    target = target.scatter_add(1, labels[:, None], torch.full_like(scores[:, :1], kept))

    def loss(log_temperature: float) -> float:
        log_posterior = (scores / math.exp(log_temperature) + shift).log_softmax(1)
        return -(target * log_posterior).sum(1).mean().item()

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return math.exp(found.x)
