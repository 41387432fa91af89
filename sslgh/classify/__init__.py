"""Long-tailed classification: heads on frozen features and what they are trained by."""

from sslgh.classify.objectives import OBJECTIVES, Objective
from sslgh.classify.training import HeadTraining, TrainedHeads, train_heads

__all__ = ["OBJECTIVES", "HeadTraining", "Objective", "TrainedHeads", "train_heads"]
