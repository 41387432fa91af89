"""Geometric Harmonization: population, surrogate labels, prior, weights and the module itself."""

from sslgh.harmonize.boosted import MomentumLoss
from sslgh.harmonize.harmonizer import GeometricHarmonizer
from sslgh.harmonize.kmeans import faiss_device
from sslgh.harmonize.population import CleanRows
from sslgh.harmonize.refresh import Refresh

__all__ = ["CleanRows", "GeometricHarmonizer", "MomentumLoss", "Refresh", "faiss_device"]
