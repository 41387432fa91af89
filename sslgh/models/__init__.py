"""Backbones and heads."""

from sslgh.models.backbones import build_backbone
from sslgh.models.batch_norm import GlobalBatchNorm, globalise
from sslgh.models.cifar_resnet import CifarResNet
from sslgh.models.classifier import CosineClassifier, linear_classifier
from sslgh.models.files import load_backbone, save_backbone
from sslgh.models.heads import contrast_head, simclr_projector, simsiam_predictor, simsiam_projector

__all__ = [
    "CifarResNet",
    "CosineClassifier",
    "GlobalBatchNorm",
    "build_backbone",
    "contrast_head",
    "globalise",
    "linear_classifier",
    "load_backbone",
    "save_backbone",
    "simclr_projector",
    "simsiam_predictor",
    "simsiam_projector",
]
