"""Pure tensor mathematics: losses, transport, frames and metrics without state or files."""

from sslgh.functional.contrastive import Gather, nt_xent
from sslgh.functional.cosine import negative_cosine
from sslgh.functional.embedding_margin import embedding_margin, has_mate
from sslgh.functional.frames import simplex_etf, uniform_frame
from sslgh.functional.harmonization import harmonization_loss
from sslgh.functional.margins import (
    adjust_logits,
    logit_adjusted_cross_entropy,
    margin_cross_entropy,
)
from sslgh.functional.sinkhorn import sinkhorn
from sslgh.functional.vertices import vertex_scores

__all__ = [
    "Gather",
    "adjust_logits",
    "embedding_margin",
    "harmonization_loss",
    "has_mate",
    "logit_adjusted_cross_entropy",
    "margin_cross_entropy",
    "negative_cosine",
    "nt_xent",
    "simplex_etf",
    "sinkhorn",
    "uniform_frame",
    "vertex_scores",
]
