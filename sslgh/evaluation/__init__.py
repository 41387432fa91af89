"""Evaluation: features once, named protocols, probes and the table."""

from sslgh.evaluation.feature_file import FeatureFile, load_feature_file
from sslgh.evaluation.features import cached_features, extract_features
from sslgh.evaluation.probing import check_probes, probe_backbone, probe_features
from sslgh.evaluation.protocols import PROTOCOLS
from sslgh.evaluation.results import Result, Scores, read_results
from sslgh.evaluation.table import comparison_table

__all__ = [
    "PROTOCOLS",
    "FeatureFile",
    "Result",
    "Scores",
    "cached_features",
    "check_probes",
    "comparison_table",
    "extract_features",
    "load_feature_file",
    "probe_backbone",
    "probe_features",
    "read_results",
]
