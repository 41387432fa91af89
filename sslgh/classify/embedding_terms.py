"""Losses on the embeddings that a classifier reads, all called the same way.

Class weights are the proxies: in a batch of 128, six of a hundred images of the rarest class of
CIFAR-100-LT have a mate; a proxy gives one to all.

Shapes: N samples, V views, D embedding width, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sslgh.functional.embedding_terms import (
    embedding_hinge,
    embedding_margin,
    embedding_pull,
    has_mate,
)
from sslgh.functional.nt_xent import Gather
from sslgh.functional.supervised_contrastive import (
    balanced_contrastive,
    rebalanced_contrastive,
    supervised_contrastive,
)


class TermSettings(NamedTuple):
    """What the terms read, each what it needs.

    Attributes:
        tau: Strength of the margins between classes.
        temperature: Divides cosines; 0.1 is that of BCL and ProCo on CIFAR.
        gamma: RCL: power of the class shares in the denominator; 0 is BCL.
        scale: RCL: factor of the normalized embeddings; the same as temperature / scale^2.
    """

    tau: float = 1.0
    temperature: float = 0.1
    gamma: float = 1.0
    scale: float = 1.0


# (embeddings (N, V, D), target (N,), proxies (C, D), prior (C,), settings, gather) to a loss (N,) whose plain mean is
# what is minimized.
EmbeddingTerm = Callable[[Tensor, Tensor, Tensor, Tensor, TermSettings, Gather | None], Tensor]


def margin_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """E2: the contrast between classes with a margin by the ratio of their shares."""
    loss = embedding_margin(
        z.flatten(0, 1),
        _repeated(target, z),
        prior,
        tau=settings.tau,
        temperature=settings.temperature,
        proxies=proxies,
        gather=gather,
    )
    return loss.view(z.shape[:2]).mean(1)


def contrast_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """E1: the same contrast without a margin."""
    return margin_term(z, target, proxies, prior, settings._replace(tau=0.0), gather)


def hinge_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """E3: a hinge on distances, its margin growing with rarity."""
    labels = _repeated(target, z)
    loss = embedding_hinge(
        z.flatten(0, 1), labels, prior, tau=settings.tau, proxies=proxies, gather=gather
    )
    return loss.view(z.shape[:2]).mean(1)


def pull_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """E4: a pull to the class, stronger for rare ones, and no rivals."""
    labels = _repeated(target, z)
    loss = embedding_pull(
        z.flatten(0, 1), labels, prior, tau=settings.tau, proxies=proxies, gather=gather
    )
    return loss.view(z.shape[:2]).mean(1)


def supervised_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """SupCon, scaled so that the mean over the batch is the mean over the anchors with a mate."""
    loss = supervised_contrastive(z, target, temperature=settings.temperature, gather=gather)
    if z.shape[1] > 1:  # the other view is a mate
        return loss
    mates = has_mate(target, gather=gather).sum().clamp(min=1)
    return loss * (len(target) / mates)


def balanced_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """E5, BCL: the denominator averages each class."""
    return balanced_contrastive(z, target, proxies, temperature=settings.temperature, gather=gather)


def rebalanced_term(
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    prior: Tensor,
    settings: TermSettings,
    gather: Gather | None,
) -> Tensor:
    """RCL: the averages are weighted by the class shares, which differ from counts by a constant only."""
    return rebalanced_contrastive(
        z,
        target,
        proxies,
        prior,
        temperature=settings.temperature,
        gamma=settings.gamma,
        scale=settings.scale,
        gather=gather,
    )


def _repeated(target: Tensor, z: Tensor) -> Tensor:
    return target.repeat_interleave(z.shape[1])
