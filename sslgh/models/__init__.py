"""Backbones and heads."""

from sslgh.models.backbones import build_backbone
from sslgh.models.batch_norm import GlobalBatchNorm, globalise
from sslgh.models.checkpointing import checkpoint_activations
from sslgh.models.cifar_resnet import CifarResNet
from sslgh.models.classifier import CosineClassifier, linear_classifier
from sslgh.models.files import load_backbone, save_backbone
from sslgh.models.heads import (
    contrast_head,
    dino_projector,
    mlp_projector,
    moco_projector,
    moco_v3_head,
    simclr_projector,
    simsiam_predictor,
    simsiam_projector,
)
from sslgh.models.pruning import PrunedBranch

__all__ = [
    "CifarResNet",
    "CosineClassifier",
    "GlobalBatchNorm",
    "PrunedBranch",
    "build_backbone",
    "checkpoint_activations",
    "contrast_head",
    "dino_projector",
    "globalise",
    "linear_classifier",
    "load_backbone",
    "mlp_projector",
    "moco_projector",
    "moco_v3_head",
    "save_backbone",
    "simclr_projector",
    "simsiam_predictor",
    "simsiam_projector",
]
