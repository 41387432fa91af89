"""Evaluation: features once, named protocols, probes and the table."""

from sslgh.evaluation.features import (
    FeatureFile,
    cached_features,
    extract_features,
    load_feature_file,
)
from sslgh.evaluation.probe_settings import check_settings
from sslgh.evaluation.probing import check_probes, labels_seen, probe_backbone, probe_features
from sslgh.evaluation.protocols import PROTOCOLS
from sslgh.evaluation.results import Result, Scores, Spread, read_results, write_results
from sslgh.evaluation.scoring import evaluate_scores, group_tightness
from sslgh.evaluation.supervised import evaluate_run
from sslgh.evaluation.tables import class_table, comparison_table, details_table

__all__ = [
    "PROTOCOLS",
    "FeatureFile",
    "Result",
    "Scores",
    "Spread",
    "cached_features",
    "check_probes",
    "check_settings",
    "class_table",
    "comparison_table",
    "details_table",
    "evaluate_run",
    "evaluate_scores",
    "extract_features",
    "group_tightness",
    "labels_seen",
    "load_feature_file",
    "probe_backbone",
    "probe_features",
    "read_results",
    "write_results",
]
