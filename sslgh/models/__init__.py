"""Backbones and heads."""

from sslgh.models.backbones import build_backbone
from sslgh.models.batch_norm import GlobalBatchNorm, globalise
from sslgh.models.files import load_backbone, save_backbone
from sslgh.models.heads import simclr_projector, simsiam_predictor, simsiam_projector

__all__ = [
    "GlobalBatchNorm",
    "build_backbone",
    "globalise",
    "load_backbone",
    "save_backbone",
    "simclr_projector",
    "simsiam_predictor",
    "simsiam_projector",
]
