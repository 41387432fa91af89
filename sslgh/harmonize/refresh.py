"""What a refresh of the population changed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

REWEIGHTED = 1.5  # factor from which on the weight of a sample counts as changed


class Refresh(NamedTuple):
    """Result of the last refresh, for the log.

    Attributes:
        epoch: Epoch of the refresh.
        accepted: Whether the estimate agrees with itself; if not, it changed nothing.
        visibility: Share of the recurring clusters that noise does not have, 0 to 1; None with prototypes, and
            ``recurring``, ``noise`` and ``separation`` too.
        recurring: Effective number of clusters that recur over resamples.
        noise: The same number for Gaussian noise of the same covariance.
        classes: Surrogate classes with at least one sample.
        largest: Share of the largest.
        smallest: Share of the smallest that has any.
        separation: Mean distance between the mean directions of the clusters, 0 to 2.
        churn: Share of the samples whose surrogate label changed; 1 at the first refresh.
        drift: Total variation between the new shares of the classes and those before; 0 at the first accepted refresh.
        reweighted: Share of the samples whose weight changed by more than 1.5 times.
        largest_weight: Largest instance weight.
    """

    epoch: int
    accepted: bool
    visibility: float | None
    recurring: float | None
    noise: float | None
    separation: float | None
    classes: int
    largest: float
    smallest: float
    churn: float
    drift: float
    reweighted: float
    largest_weight: float


class State(NamedTuple):
    """What a refresh may change, on the CPU; shapes as in the harmonizer."""

    labels: Tensor
    prior: Tensor
    instance_weight: Tensor
    quality: Tensor
    accepted: Tensor


def described(epoch: int, before: State, after: State, *, measured: bool) -> Refresh:
    """Compare the states before and after a refresh.

    Args:
        epoch: Epoch of the refresh.
        before: State before it.
        after: State after it.
        measured: Whether its classes are clusters, whose recurrence is measured.
    """
    counts = torch.bincount(after.labels[after.labels >= 0], minlength=len(after.prior))
    shares = counts[counts > 0] / counts.sum() if counts.any() else torch.ones(1)
    change = (after.instance_weight / before.instance_weight).log().abs()
    accepted = int(after.accepted) > int(before.accepted)
    # The averaged prior of clusters moves slowly by construction: what is new is compared with it.
    new = counts / counts.sum().clamp(min=1) if measured else after.prior
    first = int(before.accepted) == 0
    drift = 0.0 if first or not accepted else float((new - before.prior).abs().sum() / 2)
    _, visibility, recurring, noise, separation = after.quality.tolist()
    return Refresh(
        epoch=epoch,
        accepted=accepted,
        visibility=visibility if measured else None,
        recurring=math.exp(recurring) if measured else None,
        noise=math.exp(noise) if measured else None,
        separation=separation if measured else None,
        classes=len(shares),
        largest=float(shares.max()),
        smallest=float(shares.min()),
        churn=float((after.labels != before.labels).float().mean()),
        drift=drift,
        reweighted=float((change > math.log(REWEIGHTED)).float().mean()),
        largest_weight=float(after.instance_weight.max()),
    )
