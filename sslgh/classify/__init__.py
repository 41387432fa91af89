"""Long-tailed classification: objectives, and heads on frozen features that are trained by them."""

from sslgh.classify.embedding_terms import EmbeddingTerm, TermSettings
from sslgh.classify.ensemble import Head, HeadEnsemble
from sslgh.classify.estimator import LongTailProbe
from sslgh.classify.objectives import OBJECTIVES, Objective
from sslgh.classify.selection import select_heads
from sslgh.classify.train_heads import HeadTraining, train_heads

__all__ = [
    "OBJECTIVES",
    "EmbeddingTerm",
    "Head",
    "HeadEnsemble",
    "HeadTraining",
    "LongTailProbe",
    "Objective",
    "TermSettings",
    "select_heads",
    "train_heads",
]
