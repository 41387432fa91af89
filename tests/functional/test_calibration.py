import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from sslgh.functional.calibration import calibration_error


def answers(count=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator, dtype=torch.float64) ** 0.5
    return confidence, torch.rand(count, generator=generator) < confidence**2


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_it_equals_the_equation_of_guo_et_al(bins):
    confidence, right = answers()
    confidence[:4] = torch.tensor([0.0, 0.2, 0.6, 1.0])  # on edges
    total = 0.0
    for m in range(1, bins + 1):
        rows = [
            i
            for i, c in enumerate(confidence.tolist())
            if (m - 1) / bins < c <= m / bins or (m == 1 and c == 0)
        ]
        if rows:
            gap = np.mean(right[rows].numpy()) - np.mean(confidence[rows].numpy())
            total += len(rows) / len(right) * abs(gap)
    assert calibration_error(confidence, right, bins=bins).item() == pytest.approx(total, rel=1e-12)


def test_it_is_the_weighted_gap_of_scikit_learn_s_reliability_curve():
    confidence, right = answers(seed=1)
    share, mean = calibration_curve(right, confidence, n_bins=15)
    weights = np.histogram(confidence, bins=15, range=(0, 1))[0]
    assert (weights > 0).all()
    expected = (weights * abs(share - mean)).sum() / len(right)
    assert calibration_error(confidence, right).item() == pytest.approx(expected)


def test_one_bin_is_the_distance_between_mean_confidence_and_accuracy():
    confidence, right = answers(seed=2)
    expected = (confidence.mean() - right.double().mean()).abs()
    torch.testing.assert_close(calibration_error(confidence, right, bins=1), expected)


def test_a_classifier_that_is_always_sure_errs_by_the_share_of_wrong_answers():
    right = torch.arange(10) < 7
    assert calibration_error(torch.ones(10), right).item() == pytest.approx(0.3)
    assert calibration_error(torch.ones(10), torch.ones(10, dtype=torch.bool)) == 0


def test_the_end_of_a_bin_belongs_to_it():
    # 1/15 with a right answer and 0.05 with a wrong one share the first bin: |1 - 1/15 - 0.05| / 2.
    confidence = torch.tensor([1 / 15, 0.05], dtype=torch.float64)
    error = calibration_error(confidence, torch.tensor([True, False]))
    assert error.item() == pytest.approx((1 - 1 / 15 - 0.05) / 2)


def test_rounding_does_not_move_votes_to_another_bin():
    generator = torch.Generator().manual_seed(4)
    votes = (torch.arange(150) % 15 + 1).double() / 15
    right = torch.rand(150, generator=generator) < 0.5
    exact = calibration_error(votes, right)
    assert 0.2 < exact < 0.8
    moved = votes + 1e-8 * torch.randn(150, generator=generator)
    torch.testing.assert_close(calibration_error(moved, right), exact, rtol=0, atol=1e-7)


def test_the_order_of_the_images_does_not_matter():
    confidence, right = answers(seed=3)
    error = calibration_error(confidence, right)
    torch.testing.assert_close(calibration_error(confidence.flip(0), right.flip(0)), error)


def test_impossible_arguments_are_named():
    yes = torch.tensor([True, True])
    with pytest.raises(ValueError, match=r"share a shape \(N,\), N >= 1, got \(3,\) and \(2,\)"):
        calibration_error(torch.zeros(3), yes)
    with pytest.raises(ValueError, match=r"got \(0,\) and \(0,\)"):
        calibration_error(torch.zeros(0), yes[:0])
    with pytest.raises(ValueError, match=r"right must be bool, got torch.int64"):
        calibration_error(torch.zeros(2), torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration_error(torch.zeros(2), yes, bins=0)
