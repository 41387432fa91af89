"""What a head on frozen features is trained by, and how it decides.

Shapes: N samples, C classes, D embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sslgh.functional import adjust_logits, embedding_margin, logit_adjusted_cross_entropy

LogitLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
EmbeddingLoss = Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]
Decision = Callable[[Tensor, Tensor, float], Tensor]

# Strength and temperature of the embedding term: the values of the nearest methods with public code (facts: BCL weighs
# its contrastive term 0.35, ProCo uses temperature 0.1 on CIFAR).
EMBEDDING_WEIGHT = 0.35
EMBEDDING_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Objective:
    """One way to get a long-tailed classifier out of a head.

    Attributes:
        logit_loss: (logits (N, C), target (N,), prior (C,), tau) to a loss (N,).
        embedding_loss: (embeddings (N, D), target, prior, tau, class weights (C, D)) to a loss (N,), weighted with
            `EMBEDDING_WEIGHT`; None: the head is linear and has no embedding layer.
        decide: (logits (N, C), prior, tau) to the scores whose argmax is the answer; None: the logits.
        head: Objective whose trained head is used; None: one of its own is trained.
    """

    logit_loss: LogitLoss
    embedding_loss: EmbeddingLoss | None = None
    decide: Decision | None = None
    head: str | None = None


def _cross_entropy(logits: Tensor, target: Tensor, prior: Tensor, tau: float) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


def _adjusted(logits: Tensor, target: Tensor, prior: Tensor, tau: float) -> Tensor:
    return logit_adjusted_cross_entropy(logits, target, prior, tau=tau)


def _post_hoc(logits: Tensor, prior: Tensor, tau: float) -> Tensor:
    return adjust_logits(logits, prior, tau=tau)


def _margin(
    embeddings: Tensor, target: Tensor, prior: Tensor, tau: float, weights: Tensor
) -> Tensor:
    # In a batch of 128, six of a hundred images of the rarest class of CIFAR-100-LT have a mate; the class weights as
    # proxies give one to all.
    return embedding_margin(
        embeddings, target, prior, tau=tau, temperature=EMBEDDING_TEMPERATURE, proxies=weights
    )


# ce: cross-entropy.  la: logit-adjusted loss (arXiv:2007.07314, eq. 10).  la-posthoc: the same head as ce, its logits
# adjusted afterwards (eq. 9).  elm: Embedding and Logit Margins for Long-Tail Learning (arXiv:2204.13208), after the
# paper; its exact form was not at hand: the LA loss plus an embedding margin between pairs and proxies.
OBJECTIVES = {
    "ce": Objective(_cross_entropy),
    "la": Objective(_adjusted),
    "la-posthoc": Objective(_cross_entropy, decide=_post_hoc, head="ce"),
    "elm": Objective(_adjusted, embedding_loss=_margin),
}
