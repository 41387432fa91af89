"""Geometric Harmonization: population, surrogate labels, prior, weights and the module itself."""

from sslgh.harmonize.harmonizer import GeometricHarmonizer, Refresh
from sslgh.harmonize.kmeans import faiss_device
from sslgh.harmonize.momentum_loss import MomentumLoss

__all__ = ["GeometricHarmonizer", "MomentumLoss", "Refresh", "faiss_device"]
