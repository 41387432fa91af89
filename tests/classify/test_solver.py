import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sslgh.classify import OBJECTIVES, HeadTraining, train_heads
from sslgh.classify.ensemble import Head
from sslgh.classify.solver import solve_heads
from sslgh.functional.margin_rules import (
    adaptive_margins,
    adjusted_margins,
    balanced_margins,
    effective_number_margins,
    equalized_margins,
    plain_margins,
    weighted_adjusted_margins,
)

RULES = [
    plain_margins,
    balanced_margins,
    effective_number_margins,
    adjusted_margins,
    weighted_adjusted_margins,
    adaptive_margins,
    equalized_margins,
]
DECAY = 1e-2


def blobs(counts, width=4):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), width, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return centers[labels] + noise, labels


COUNTS = [60, 30, 10]
FEATURES, LABELS = blobs(COUNTS)
PRIOR = torch.tensor(COUNTS).double() / 100


def solved(margins, *, decay=DECAY, features=FEATURES, labels=LABELS, **options):
    weight, bias = solve_heads(
        features,
        labels,
        num_classes=len(margins.row),
        margins=[margins],
        weight_decay=[decay],
        **{"tolerance": 1e-9} | options,
    )
    return weight[0], bias[0]


def penalized(weight, bias, margins, decay=DECAY, features=FEATURES, labels=LABELS):
    """The objective as LA, eq. 11, has it: loops in float64."""
    total = 0.0
    for x, y in zip(features.numpy(), labels.tolist(), strict=True):
        f = weight @ x + bias
        rivals = [other for other in range(len(f)) if other != y]
        delta = margins.row[y].item() + margins.column.numpy()
        inner = sum(math.exp(delta[other] + f[other] - f[y]) for other in rivals)
        total += margins.weight[y].item() * math.log1p(inner)
    return total / len(features) + decay / 2 * (weight**2).sum()


@pytest.mark.parametrize(
    ("rule", "weighting"), [(plain_margins, None), (balanced_margins, "balanced")]
)
@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_the_coefficients_are_those_of_scikit_learn(rule, weighting, decay):
    oracle = LogisticRegression(
        C=1 / (100 * decay), tol=1e-9, max_iter=5000, class_weight=weighting
    )
    oracle.fit(FEATURES.numpy(), LABELS.numpy())
    weight, bias = solved(rule(PRIOR), decay=decay)
    np.testing.assert_allclose(weight, oracle.coef_ - oracle.coef_.mean(0), atol=1e-4)
    np.testing.assert_allclose(bias, oracle.intercept_ - oracle.intercept_.mean(), atol=1e-4)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_is_logistic_regression_with_shifted_intercepts(tau):
    # f + tau log pi is what the loss sees, and a bias that is not decayed takes up the shift.
    oracle = LogisticRegression(C=1 / (100 * DECAY), tol=1e-9, max_iter=5000)
    oracle.fit(FEATURES.numpy(), LABELS.numpy())
    weight, bias = solved(adjusted_margins(PRIOR, tau=tau))
    shifted = oracle.intercept_ - tau * PRIOR.log().numpy()
    np.testing.assert_allclose(weight, oracle.coef_ - oracle.coef_.mean(0), atol=1e-4)
    np.testing.assert_allclose(bias, shifted - shifted.mean(), atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_result_is_stationary_for_the_loss_as_the_paper_writes_it(rule):
    margins = rule(PRIOR, tau=1.5, num_samples=100)
    weight, bias = (part.numpy() for part in solved(margins))
    step = 1e-5
    for target in (weight, bias):
        for position in np.ndindex(target.shape):
            kept = target[position]
            sides = []
            for shift in (step, -step):
                target[position] = kept + shift
                sides.append(penalized(weight, bias, margins))
            target[position] = kept
            assert abs(sides[0] - sides[1]) / (2 * step) < 1e-7


@pytest.mark.parametrize("rule", RULES)
def test_the_result_does_not_depend_on_the_number_of_heads_solved_with_it(rule):
    margins = rule(PRIOR, num_samples=100)
    weights, biases = solve_heads(
        FEATURES,
        LABELS,
        num_classes=3,
        margins=[plain_margins(PRIOR), margins, margins],
        weight_decay=[1.0, DECAY, 1e-3],
    )
    weight, bias = solved(margins, tolerance=1e-7)
    assert torch.equal(weights[1], weight)
    assert torch.equal(biases[1], bias)
    assert weights[2].norm() > 1.1 * weights[1].norm()


@pytest.mark.parametrize("name", ["la", "effective", "equalized"])
def test_adam_ends_where_the_solver_does(name):
    training = HeadTraining(1500, 100, 0.1, 1e-3, DECAY, standardize=False)
    trained = train_heads(FEATURES, LABELS, num_classes=3, heads=[Head(name)], training=training)
    weight, bias = solved(OBJECTIVES[name].margins_of(PRIOR, num_samples=100))
    slow = trained.classifier(Head(name))
    torch.testing.assert_close(
        slow.weight[0].double() - slow.weight[0].mean(0), weight, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(slow.bias[0].double() - slow.bias[0].mean(), bias, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_class_without_samples_leaves_the_sum_and_is_never_predicted(rule):
    gap = torch.tensor([0.6, 0.0, 0.3, 0.1], dtype=torch.float64)
    labels = torch.tensor([0, 2, 3])[LABELS]
    weight, bias = solved(rule(gap, num_samples=100), labels=labels)
    expected_weight, expected_bias = solved(rule(PRIOR, num_samples=100))
    # `balanced_margins` and its like count the classes that are there.
    torch.testing.assert_close(weight[[0, 2, 3]], expected_weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(bias[[0, 2, 3]], expected_bias, atol=1e-6, rtol=0)
    assert (weight[1] == 0).all()
    assert bias[1] == -math.inf


def test_a_class_of_weight_zero_leaves_the_sum_though_it_has_samples():
    margins = plain_margins(PRIOR)._replace(weight=torch.tensor([1.0, 1.0, 0.0]))
    weight, bias = solved(margins)
    rest = LABELS < 2
    # 90 of the 100 samples remain, while the mean is over 100.
    expected, _ = solved(
        plain_margins(PRIOR[:2]), features=FEATURES[rest], labels=LABELS[rest], decay=DECAY / 0.9
    )
    torch.testing.assert_close(weight[:2], expected, atol=1e-6, rtol=0)
    assert bias[2] == -math.inf


def test_renaming_the_classes_renames_the_result():
    order = torch.tensor([2, 0, 1])
    weight, bias = solved(adjusted_margins(PRIOR))
    renamed = solved(adjusted_margins(PRIOR[order]), labels=order.argsort()[LABELS])
    torch.testing.assert_close(renamed[0], weight[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(renamed[1], bias[order], atol=1e-6, rtol=0)


def test_single_precision_features_and_short_labels_are_solved_in_double():
    exact = solved(plain_margins(PRIOR), features=FEATURES.float().double())
    for given, expected in zip(
        solved(plain_margins(PRIOR.float()), features=FEATURES.float(), labels=LABELS.int()),
        exact,
        strict=True,
    ):
        assert given.dtype == torch.float64
        torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)


def test_classes_that_can_be_separated_without_decay_end_in_a_warning_that_says_so():
    features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    plain = plain_margins(torch.tensor([0.5, 0.5]))
    with pytest.warns(ConvergenceWarning, match=r"stopped after 3 iterations with a gradient of"):
        solved(plain, features=features, labels=labels, decay=0.0, max_iterations=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved(plain, features=features, labels=labels, decay=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.full((3, 2), torch.nan)}, "3 of 3 rows hold nan or inf"),
        ({"features": torch.zeros(2, 2)}, r"got \(2, 2\) and \(3,\)"),
        ({"features": torch.zeros(0, 2), "labels": torch.zeros(0)}, r"got \(0, 2\)"),
        ({"labels": torch.tensor([0, 1, 2])}, r"must lie in 0\.\.1, got 0\.\.2"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, "labels must be integers"),
        ({"labels": torch.tensor([1, 1, 1])}, "samples of at least 2 classes"),
        ({"weight_decay": [0.1, 0.2]}, "margins and a weight decay, got 1 and 2"),
        ({"weight_decay": [-0.1]}, "must not be negative"),
        ({"weight_decay": [math.nan]}, "must not be negative"),
        ({"margins": [plain_margins(PRIOR)]}, r"margins must have shape \(2,\) each, got \(3,\)"),
        (
            {"margins": [plain_margins(PRIOR[:2])._replace(column=torch.tensor([0.0, -math.inf]))]},
            "must be finite; were they made from other shares",
        ),
    ],
)
def test_what_cannot_be_solved_is_refused_in_one_sentence(changes, message):
    arguments = {
        "features": torch.eye(3, 2),
        "labels": torch.tensor([0, 1, 1]),
        "margins": [plain_margins(torch.tensor([0.4, 0.6]))],
        "weight_decay": [0.1],
    }
    with pytest.raises(ValueError, match=message):
        solve_heads(num_classes=2, **(arguments | changes))
