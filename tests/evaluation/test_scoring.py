import math

import pytest
import torch

from sslgh.evaluation.results import Spread
from sslgh.evaluation.scoring import score


def test_spread_over_seeds_has_one_degree_of_freedom_less():
    assert Spread.over([1.0, 3.0]) == Spread(2.0, math.sqrt(2))


def test_one_seed_has_no_spread_and_an_unknown_value_no_mean():
    assert Spread.over([0.5]) == Spread(0.5, None)
    assert Spread.over([None, None]) is None
    assert Spread.over([0.5, None]) is None


def test_scores_are_means_over_seeds():
    labels = torch.tensor([0, 0, 1, 1])
    predictions = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    scores = score(predictions, labels, torch.tensor([200, 5, 50]))
    assert scores.class_accuracy == [0.75, 0.5, None]
    thresholds = scores.metrics["thresholds"]
    assert thresholds["many"] == Spread(0.75, pytest.approx(0.5 / math.sqrt(2)))
    assert thresholds["few"].mean == 0.5
    assert thresholds["medium"] is None
    assert thresholds["balanced_error"].mean == pytest.approx(1 - 0.625)
    assert scores.metrics["thirds"]["medium"] is None
