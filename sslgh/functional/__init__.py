"""Pure tensor mathematics: losses, transport, frames and metrics without state or files."""

from sslgh.functional.contrastive import Gather, nt_xent
from sslgh.functional.cosine import negative_cosine
from sslgh.functional.embedding_hinge import embedding_hinge
from sslgh.functional.embedding_margin import embedding_margin, has_mate
from sslgh.functional.embedding_pull import embedding_pull
from sslgh.functional.focal import focal_cross_entropy
from sslgh.functional.frames import simplex_etf, uniform_frame
from sslgh.functional.harmonization import harmonization_loss
from sslgh.functional.margin_rules import (
    Margins,
    Rule,
    adaptive_margins,
    adjusted_margins,
    balanced_margins,
    effective_number_margins,
    equalised_margins,
    plain_margins,
    weighted_adjusted_margins,
)
from sslgh.functional.margins import (
    adjust_logits,
    logit_adjusted_cross_entropy,
    margin_cross_entropy,
)
from sslgh.functional.sinkhorn import sinkhorn
from sslgh.functional.supervised_contrastive import (
    balanced_contrastive,
    rebalanced_contrastive,
    supervised_contrastive,
)
from sslgh.functional.vertices import vertex_scores

__all__ = [
    "Gather",
    "Margins",
    "Rule",
    "adaptive_margins",
    "adjust_logits",
    "adjusted_margins",
    "balanced_contrastive",
    "balanced_margins",
    "effective_number_margins",
    "embedding_hinge",
    "embedding_margin",
    "embedding_pull",
    "equalised_margins",
    "focal_cross_entropy",
    "harmonization_loss",
    "has_mate",
    "logit_adjusted_cross_entropy",
    "margin_cross_entropy",
    "negative_cosine",
    "nt_xent",
    "plain_margins",
    "rebalanced_contrastive",
    "simplex_etf",
    "sinkhorn",
    "supervised_contrastive",
    "uniform_frame",
    "vertex_scores",
    "weighted_adjusted_margins",
]
