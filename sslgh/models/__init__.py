"""Backbones and heads."""

from sslgh.models.activation_checkpointing import checkpoint_activations
from sslgh.models.backbones import build_backbone
from sslgh.models.batch_norm import GlobalBatchNorm, use_global_batch_norm
from sslgh.models.cifar_resnet import CifarResNet
from sslgh.models.classifier import CosineClassifier, linear_classifier
from sslgh.models.heads import (
    ProjectorSpec,
    contrast_head,
    dino_projector,
    head_widths,
    mlp_projector,
    moco_projector,
    moco_v3_head,
    simclr_projector,
    simsiam_predictor,
    simsiam_projector,
)
from sslgh.models.pruning import PrunedBranch
from sslgh.models.serialization import load_backbone, load_classifier, save_backbone

__all__ = [
    "CifarResNet",
    "CosineClassifier",
    "GlobalBatchNorm",
    "ProjectorSpec",
    "PrunedBranch",
    "build_backbone",
    "checkpoint_activations",
    "contrast_head",
    "dino_projector",
    "head_widths",
    "linear_classifier",
    "load_backbone",
    "load_classifier",
    "mlp_projector",
    "moco_projector",
    "moco_v3_head",
    "save_backbone",
    "simclr_projector",
    "simsiam_predictor",
    "simsiam_projector",
    "use_global_batch_norm",
]
