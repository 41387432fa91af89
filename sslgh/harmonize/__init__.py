"""Geometric Harmonization: population, surrogate labels, prior, weights and the module itself."""

from sslgh.harmonize.harmonizer import GeometricHarmonizer, Refresh
from sslgh.harmonize.kmeans import faiss_device

__all__ = ["GeometricHarmonizer", "Refresh", "faiss_device"]
