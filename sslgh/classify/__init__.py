"""Long-tailed classification: objectives, and heads on frozen features that are trained by them."""

from sslgh.classify.embedding_terms import EmbeddingTerm, TermSettings
from sslgh.classify.estimator import LongTailProbe
from sslgh.classify.fitting import HeadTraining
from sslgh.classify.objectives import OBJECTIVES, Objective
from sslgh.classify.selection import select_heads
from sslgh.classify.trained import Head, TrainedHeads
from sslgh.classify.training import train_heads

__all__ = [
    "OBJECTIVES",
    "EmbeddingTerm",
    "Head",
    "HeadTraining",
    "LongTailProbe",
    "Objective",
    "TermSettings",
    "TrainedHeads",
    "select_heads",
    "train_heads",
]
