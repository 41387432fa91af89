"""From features to probabilities of kinds, whatever the prior at prediction.

Shapes: N photos, F features, C kinds.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sslgh.explore.novelty import Novelty

# Photos whose probabilities are computed at once.
CHUNK = 4096


class PhotoClassifier(NamedTuple):
    """Kinds of photos by their features.

    A posterior is a likelihood times a prior: p_q(y|x) is proportional to p(x|y) q(y), and the likelihood is the same
    whichever shares q the kinds have among the photos. So a head is kept as log likelihoods, and `posterior` adds the
    log of the shares that are expected. For scores f of cross-entropy, which estimate the posterior under the shares
    pi of its training labels, this is f - log pi + log q; for scores f of the logit-adjusted loss, which are of equal
    shares already, f + log q (arXiv:2007.07314, eq. 9 and 10).

    Attributes:
        class_names: C names.
        log_likelihood: Features (N, F) to log likelihoods (N, C) in float64, up to a constant per photo.
        default: Shares that the head itself decides for, shape (C,).
        trained: Shares of the training labels, shape (C,); None if they are not known.
        fixed: Why another prior cannot be used, in words; empty if it can.
        novelty: Detects what is unlike anything that was labeled; None: not measured.
        source: What it was loaded from, for messages.
    """

    class_names: tuple[str, ...]
    log_likelihood: Callable[[Tensor], Tensor]
    default: Tensor
    trained: Tensor | None
    fixed: str
    novelty: Novelty | None
    source: str

    def posterior(self, features: Tensor, prior: Tensor | None = None) -> Tensor:
        """Probabilities (N, C) of features (N, F) where kinds have the shares ``prior`` (C,); None: as the head decides.

        A kind of share 0 has probability 0.
        """
        shift = (self.default if prior is None else prior).double().log()
        parts = [(self.log_likelihood(p) + shift).softmax(1) for p in torch.split(features, CHUNK)]
        return torch.cat(parts)
