"""Geometric Harmonization: population, surrogate labels, prior, weights and the module itself."""

from sslgh.harmonize.boosted import MomentumLoss
from sslgh.harmonize.harmonizer import GeometricHarmonizer, Refresh
from sslgh.harmonize.kmeans import faiss_device

__all__ = ["GeometricHarmonizer", "MomentumLoss", "Refresh", "faiss_device"]
