"""Long-tailed classification: objectives, and heads on frozen features that are trained by them."""

from sslgh.classify.adam_heads import HeadTraining
from sslgh.classify.converged_heads import Convergence
from sslgh.classify.embedding_terms import EmbeddingTerm, TermInput, TermSettings
from sslgh.classify.ensemble import Head, HeadEnsemble
from sslgh.classify.estimator import LongTailProbe
from sslgh.classify.objectives import OBJECTIVES, Objective
from sslgh.classify.selection import select_heads
from sslgh.classify.train_heads import Training, train_heads

__all__ = [
    "OBJECTIVES",
    "Convergence",
    "EmbeddingTerm",
    "Head",
    "HeadEnsemble",
    "HeadTraining",
    "LongTailProbe",
    "Objective",
    "TermInput",
    "TermSettings",
    "Training",
    "select_heads",
    "train_heads",
]
