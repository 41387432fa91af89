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


class TermInput(NamedTuple):
    """What a term is computed from.

    Attributes:
        embeddings: Shape (N, V, D).
        target: Classes, shape (N,).
        proxies: Class weights, shape (C, D).
        prior: Class shares, shape (C,).
        settings: Settings of the term.
        gather: Stacks a tensor over all ranks; None: this rank alone.
    """

    embeddings: Tensor
    target: Tensor
    proxies: Tensor
    prior: Tensor
    settings: TermSettings
    gather: Gather | None

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every view as a row (N V, D), with its class (N V,), and the class shares (C,)."""
        views = self.embeddings.shape[1]
        return self.embeddings.flatten(0, 1), self.target.repeat_interleave(views), self.prior

    def mean_over_views(self, loss: Tensor) -> Tensor:
        """Loss (N,) of every sample, of the loss (N V,) of the rows."""
        return loss.view(self.embeddings.shape[:2]).mean(1)


# A loss (N,) whose plain mean is what is minimized.
EmbeddingTerm = Callable[[TermInput], Tensor]


def margin_term(given: TermInput) -> Tensor:
    """E2: the contrast between classes with a margin by the ratio of their shares."""
    tau, temperature, *_ = given.settings
    loss = embedding_margin(
        *given.rows, tau=tau, temperature=temperature, proxies=given.proxies, gather=given.gather
    )
    return given.mean_over_views(loss)


def contrast_term(given: TermInput) -> Tensor:
    """E1: the same contrast without a margin."""
    return margin_term(given._replace(settings=given.settings._replace(tau=0.0)))


def hinge_term(given: TermInput) -> Tensor:
    """E3: a hinge on distances, its margin growing with rarity."""
    tau = given.settings.tau
    loss = embedding_hinge(*given.rows, tau=tau, proxies=given.proxies, gather=given.gather)
    return given.mean_over_views(loss)


def pull_term(given: TermInput) -> Tensor:
    """E4: a pull to the class, stronger for rare ones, and no rivals."""
    tau = given.settings.tau
    loss = embedding_pull(*given.rows, tau=tau, proxies=given.proxies, gather=given.gather)
    return given.mean_over_views(loss)


def supervised_term(given: TermInput) -> Tensor:
    """SupCon, scaled so that the mean over the batch is the mean over the anchors with a mate."""
    z, target, temperature = given.embeddings, given.target, given.settings.temperature
    loss = supervised_contrastive(z, target, temperature=temperature, gather=given.gather)
    if z.shape[1] > 1:  # the other view is a mate
        return loss
    mates = has_mate(target, gather=given.gather).sum().clamp(min=1)
    return loss * (len(target) / mates)


def balanced_term(given: TermInput) -> Tensor:
    """E5, BCL: the denominator averages each class."""
    z, target, proxies, _, settings, gather = given
    return balanced_contrastive(z, target, proxies, temperature=settings.temperature, gather=gather)


def rebalanced_term(given: TermInput) -> Tensor:
    """RCL: the averages are weighted by the class shares, which differ from counts by a constant only."""
    z, target, proxies, prior, settings, gather = given
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
