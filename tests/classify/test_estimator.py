import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sslgh.classify import OBJECTIVES, HeadTraining
from sslgh.classify.ensemble import Head
from sslgh.classify.estimator import LongTailProbe, is_convex
from sslgh.classify.train_heads import train_heads

QUICK = {"epochs": 20, "lr": 0.1}
# One for each way to a head: solved, decided otherwise, descended on, with an embedding, on another head, of means.
CHECKED = ["la", "tau-norm", "focal", "elm", "lws", "ncm"]
SHIFTING = [name for name, objective in OBJECTIVES.items() if objective.shifts]


def blobs(counts, seed=0, width=6):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = np.random.default_rng(99).normal(size=(len(counts), width))
    return centers[labels] + generator.normal(size=(len(labels), width)), labels


X, Y = blobs([60, 30, 10])
NAMES = np.array(["cat", "dog", "owl"])[Y]


# No failures are expected: the checks that need sample weights or sparse features do not apply.
@parametrize_with_checks([LongTailProbe(name, **QUICK) for name in CHECKED])
def test_scikit_learn_s_checks_pass(estimator, check):
    check(estimator)


def gaussians(positives, negatives, seed):
    """The problem of the LA paper (facts 2.8): means y(1, 1), unit variance."""
    labels = np.repeat([1, 0], [positives, negatives])
    noise = np.random.default_rng(seed).normal(size=(len(labels), 2))
    return noise + (2.0 * labels - 1)[:, None], labels


def test_logit_adjustment_finds_the_bayes_line_and_cross_entropy_does_not():
    x, y = gaussians(1000, 19_000, seed=0)
    adjusted, plain = (LongTailProbe(name, weight_decay=0.0).fit(x, y) for name in ("la", "ce"))
    # Bayes: 2 (x1 + x2) = 0; cross-entropy stays log 19 to the side of it.
    np.testing.assert_allclose(adjusted.coef_, [[2, 2]], atol=0.15)
    np.testing.assert_allclose(adjusted.intercept_, [0], atol=0.15)
    np.testing.assert_allclose(plain.intercept_, [-np.log(19)], atol=0.15)
    test, truth = gaussians(5000, 5000, seed=1)
    bayes = balanced_accuracy_score(truth, test.sum(1) > 0)
    assert balanced_accuracy_score(truth, adjusted.predict(test)) == pytest.approx(bayes, abs=5e-3)
    # Phi(-0.373) of the positives are found: 0.82 and 0.98 in the middle.
    assert balanced_accuracy_score(truth, plain.predict(test)) < bayes - 0.08


@pytest.mark.parametrize("labels", [Y, Y % 2], ids=["three classes", "two classes"])
def test_cross_entropy_is_logistic_regression_of_scikit_learn(labels):
    probe = LongTailProbe("ce", weight_decay=1e-2, standardize=False).fit(X, labels)
    oracle = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000)
    if labels.max() == 1:
        # Two opposite weights of half the length cost half of what one costs.
        oracle.set_params(C=2.0)
    oracle.fit(X, labels)
    expected = oracle.coef_ - (oracle.coef_.mean(0) if labels.max() == 2 else 0)
    shifted = oracle.intercept_ - (oracle.intercept_.mean() if labels.max() == 2 else 0)
    np.testing.assert_allclose(probe.coef_, expected, atol=1e-4)
    np.testing.assert_allclose(probe.intercept_, shifted, atol=1e-4)
    np.testing.assert_array_equal(probe.predict(X), oracle.predict(X))
    np.testing.assert_allclose(probe.predict_proba(X), oracle.predict_proba(X), atol=1e-4)


def test_standardizing_is_a_standard_scaler_before_the_probe():
    scaled = X * np.logspace(-3, 3, 6) + 5
    inside = LongTailProbe("la").fit(scaled, Y)
    before = make_pipeline(StandardScaler(), LongTailProbe("la", standardize=False)).fit(scaled, Y)
    np.testing.assert_allclose(
        inside.decision_function(scaled), before.decision_function(scaled), atol=1e-9
    )


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "ncm"])
@pytest.mark.parametrize("labels", [Y, Y % 2], ids=["three classes", "two classes"])
def test_every_objective_learns_predicts_strings_and_is_affine_in_the_features(name, labels):
    words = np.array(["cat", "dog", "owl"])[labels]
    probe = LongTailProbe(name, **QUICK).fit(X * 3 + 1, words)
    scores = probe.decision_function(X * 3 + 1)
    affine = (X * 3 + 1) @ probe.coef_.T + probe.intercept_
    np.testing.assert_allclose(scores, affine[:, 0] if scores.ndim == 1 else affine, atol=1e-8)
    assert set(probe.predict(X)) <= set(words)
    assert balanced_accuracy_score(words, probe.predict(X * 3 + 1)) > 0.75
    assert probe.solver_ == ("lbfgs" if is_convex(name) else "adam")


def test_the_solver_is_for_the_convex_objectives_and_no_others():
    assert {name for name in OBJECTIVES if is_convex(name)} == {
        "ce",
        "balanced",
        "effective",
        "la",
        "la-posthoc",
        "la-weighted",
        "balanced-softmax",
        "ldam",
        "equalized",
        "tau-norm",
    }


def test_nearest_class_mean_predicts_and_has_no_coefficients():
    probe = LongTailProbe("ncm").fit(X, NAMES)
    assert balanced_accuracy_score(NAMES, probe.predict(X)) > 0.75
    with pytest.raises(AttributeError, match="'ncm' decides by the cosine"):
        _ = probe.coef_


def test_adam_is_train_heads_on_standardized_samples_in_the_order_drawn():
    probe = LongTailProbe("elm", tau=0.5, random_state=7, **QUICK).fit(X, Y)
    order = np.random.RandomState(7).permutation(100)
    training = HeadTraining(20, 64, 0.1, 1e-3, 1e-3)
    head = Head("elm", tau=0.5)
    trained = train_heads(
        torch.from_numpy(X[order]),
        torch.from_numpy(Y[order]),
        num_classes=3,
        heads=[head],
        training=training,
    )
    expected = trained.scores(head, torch.from_numpy(X))[0]
    np.testing.assert_allclose(probe.decision_function(X), expected, atol=1e-3)


def test_the_random_state_repeats_a_fit_exactly_and_another_one_does_not():
    first, second, other = (
        LongTailProbe("elm", random_state=seed, **QUICK).fit(X, Y).decision_function(X)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4


def test_solvers_agree_where_both_can():
    settings = {"weight_decay": 1e-1, "epochs": 400, "lr": 0.05, "batch_size": 100}
    solved, descended = (
        LongTailProbe("la", solver=solver, **settings).fit(X, Y) for solver in ("lbfgs", "adam")
    )
    np.testing.assert_allclose(solved.predict_proba(X), descended.predict_proba(X), atol=2e-3)


def posterior_under(shares, probe):
    """Bayes' rule on what cross-entropy estimates under the training shares."""
    joint = probe.predict_proba(X) / probe.prior_ * shares
    return joint / joint.sum(1, keepdims=True)


@pytest.mark.parametrize("shares", ["balanced", "train", (0.2, 0.5, 0.3), (0.0, 0.5, 0.5)])
@pytest.mark.parametrize("name", ["ce", "la", "balanced-softmax"])
def test_probabilities_are_those_of_the_test_prior(name, shares):
    plain = LongTailProbe("ce").fit(X, Y)
    values = {"balanced": np.full(3, 1 / 3), "train": plain.prior_}
    wanted = values[shares] if isinstance(shares, str) else np.array(shares)
    probe = LongTailProbe(name, tau=1.0, test_prior=shares).fit(X, NAMES)
    # All three are the same problem up to what their biases take up.
    np.testing.assert_allclose(probe.predict_proba(X), posterior_under(wanted, plain), atol=1e-4)
    np.testing.assert_array_equal(
        probe.predict(X), probe.classes_[posterior_under(wanted, plain).argmax(1)]
    )


def test_without_a_test_prior_the_objective_decides():
    plain, adjusted, after = (LongTailProbe(name).fit(X, Y) for name in ("ce", "la", "la-posthoc"))
    np.testing.assert_allclose(plain.predict_proba(X).mean(0), plain.prior_, atol=1e-4)
    even = posterior_under(np.full(3, 1 / 3), plain)
    np.testing.assert_allclose(adjusted.predict_proba(X), even, atol=1e-4)
    np.testing.assert_allclose(after.predict_proba(X), even, atol=1e-4)


def test_the_test_prior_may_change_after_the_fit():
    probe = LongTailProbe("la").fit(X, Y)
    before = probe.coef_
    probe.set_params(test_prior=(1.0, 0.0, 0.0))
    assert set(probe.predict(X)) == {0}
    np.testing.assert_array_equal(probe.coef_, before)
    assert probe.intercept_[1] == -np.inf


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(SHIFTING)))
def test_a_test_prior_is_refused_at_the_fit_where_it_means_nothing(name):
    with pytest.raises(ValueError, match="cannot be brought to a test prior"):
        LongTailProbe(name, test_prior="balanced", **QUICK).fit(X, Y)


def test_tau_reaches_the_margins_and_the_decision():
    for name in ("la", "la-posthoc"):
        one, two = (LongTailProbe(name, tau=tau).fit(X, Y) for tau in (1.0, 2.0))
        shift = (two.decision_function(X) - one.decision_function(X)).mean(0)
        expected = -np.log(one.prior_)
        np.testing.assert_allclose(
            shift - shift.mean(), expected - expected.mean(), atol=1e-4, err_msg=name
        )


def test_it_can_be_cloned_pickled_piped_and_searched():
    probe = LongTailProbe("elm", tau=0.5, test_prior="balanced", **QUICK)
    assert clone(probe).get_params() == probe.get_params()
    fitted = probe.fit(X, NAMES)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    pipe = make_pipeline(StandardScaler(), LongTailProbe())
    grid = {"longtailprobe__tau": [0.0, 1.0], "longtailprobe__objective": ["ce", "la"]}
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(pipe, grid, cv=folds, scoring="balanced_accuracy").fit(X, NAMES)
    results = search.cv_results_
    scores = dict(
        zip(
            [(p["longtailprobe__objective"], p["longtailprobe__tau"]) for p in results["params"]],
            results["mean_test_score"],
            strict=True,
        )
    )
    assert scores["ce", 0.0] == scores["ce", 1.0] == scores["la", 0.0] < scores["la", 1.0]
    assert search.best_params_ == {"longtailprobe__objective": "la", "longtailprobe__tau": 1.0}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "cos"}, "unknown objective 'cos'; known are ce, balanced"),
        ({"solver": "sgd"}, "solver must be one of auto, lbfgs, adam, got 'sgd'"),
        ({"objective": "elm", "solver": "lbfgs"}, "'elm' needs 'adam' or 'auto'"),
        ({"tau": -1.0}, "tau must not be negative, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative, got nan"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"lr": 0.0}, r"lr must be positive, got 0\.0"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"test_prior": "uniform"}, "test_prior must be 'balanced', 'train', None or one share"),
        ({"test_prior": [0.5, 0.5]}, r"each of the 3 classes, got shape \(2,\)"),
        ({"test_prior": [0.5, 0.5, 0.5]}, "sum to 1, got a sum of 1.5"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_in_one_sentence(parameters, message):
    with pytest.raises(ValueError, match=message):
        LongTailProbe(**parameters).fit(X, Y)


def test_data_that_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="all 100 are of class owl"):
        LongTailProbe().fit(X, np.full(100, "owl"))
    with pytest.raises(ValueError, match="NaN"):
        LongTailProbe().fit(np.where(X > 2, np.nan, X), Y)
    fitted = LongTailProbe().fit(X, Y)
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict(np.full((1, 6), np.nan))
    with pytest.raises(ValueError, match="5 features, but LongTailProbe is expecting 6"):
        fitted.predict(X[:, :5])
    with pytest.raises(NotFittedError):
        LongTailProbe().predict(X)
    assert not hasattr(LongTailProbe(), "coef_")
