"""Pure tensor mathematics: losses, transport, frames and metrics without state or files."""

from sslgh.functional.barlow_twins import barlow_twins
from sslgh.functional.clustering import entropy, gini, purity
from sslgh.functional.decoupled_nt_xent import decoupled_nt_xent
from sslgh.functional.embedding_terms import (
    embedding_hinge,
    embedding_margin,
    embedding_pull,
    has_mate,
)
from sslgh.functional.focal import focal_cross_entropy
from sslgh.functional.focal_nt_xent import focal_nt_xent
from sslgh.functional.frames import simplex_etf, uniform_frame
from sslgh.functional.geometry import (
    alignment,
    effective_rank,
    inter_class_uniformity,
    neighborhood_uniformity,
    uniformity,
)
from sslgh.functional.harmonization import harmonization_loss, vertex_scores
from sslgh.functional.info_nce import info_nce, queued_info_nce
from sslgh.functional.margin_rules import (
    Margins,
    Rule,
    adaptive_margins,
    adjusted_margins,
    balanced_margins,
    effective_number_margins,
    equalized_margins,
    plain_margins,
    weighted_adjusted_margins,
)
from sslgh.functional.margins import (
    adjust_logits,
    logit_adjusted_cross_entropy,
    margin_cross_entropy,
)
from sslgh.functional.negative_cosine import negative_cosine
from sslgh.functional.nt_xent import Gather, nt_xent
from sslgh.functional.self_distillation import self_distillation
from sslgh.functional.sigreg import sigreg
from sslgh.functional.sinkhorn import sinkhorn
from sslgh.functional.supervised_contrastive import (
    balanced_contrastive,
    rebalanced_contrastive,
    supervised_contrastive,
)
from sslgh.functional.swapped_assignment import swapped_assignment
from sslgh.functional.vicreg import vicreg

__all__ = [
    "Gather",
    "Margins",
    "Rule",
    "adaptive_margins",
    "adjust_logits",
    "adjusted_margins",
    "alignment",
    "balanced_contrastive",
    "balanced_margins",
    "barlow_twins",
    "decoupled_nt_xent",
    "effective_number_margins",
    "effective_rank",
    "embedding_hinge",
    "embedding_margin",
    "embedding_pull",
    "entropy",
    "equalized_margins",
    "focal_cross_entropy",
    "focal_nt_xent",
    "gini",
    "harmonization_loss",
    "has_mate",
    "info_nce",
    "inter_class_uniformity",
    "logit_adjusted_cross_entropy",
    "margin_cross_entropy",
    "negative_cosine",
    "neighborhood_uniformity",
    "nt_xent",
    "plain_margins",
    "purity",
    "queued_info_nce",
    "rebalanced_contrastive",
    "self_distillation",
    "sigreg",
    "simplex_etf",
    "sinkhorn",
    "supervised_contrastive",
    "swapped_assignment",
    "uniform_frame",
    "uniformity",
    "vertex_scores",
    "vicreg",
    "weighted_adjusted_margins",
]
