from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslgh.classify import (
    OBJECTIVES,
    Convergence,
    Head,
    HeadTraining,
    converged_heads,
    solver,
    train_heads,
)
from sslgh.classify.ensemble import FeatureScaler
from sslgh.classify.plateau_heads import Plateau

DECAY = 1e-2
# The gradient that is left is then far below the differences that the tests look for.
EXACT = Convergence(weight_decay=DECAY, tolerance=1e-9)
COUNTS = [60, 25, 6]


def blobs(counts, *, seed=0, width=5):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(len(labels), width, generator=torch.Generator().manual_seed(seed))
    # Scales of features differ by orders of magnitude, as those of backbones do.
    return (centers[labels] + noise) * torch.logspace(-2, 2, width), labels


FEATURES, LABELS = blobs(COUNTS)


def trained(name, *, features=FEATURES, labels=LABELS, training=EXACT, **settings):
    head = Head(name, **settings)
    classes = len(COUNTS)
    return train_heads(features, labels, num_classes=classes, heads=[head], training=training), head


@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize(
    ("name", "weighting"), [("ce", None), ("balanced", "balanced"), ("crt", "balanced")]
)
def test_a_head_is_the_logistic_regression_of_scikit_learn_for_few_and_for_many_images(
    name, weighting, copies
):
    features, labels = blobs([copies * count for count in COUNTS])
    found, head = trained(name, features=features, labels=labels)
    oracle = LogisticRegression(
        C=1 / (len(labels) * DECAY), class_weight=weighting, tol=1e-10, max_iter=10_000
    )
    rows = StandardScaler().fit_transform(features.double().numpy())
    expected = oracle.fit(rows, labels.numpy()).predict_log_proba(rows)
    scores = found.scores(head, features)[0].log_softmax(1)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_features_are_standardized_by_the_moments_that_are_given():
    mean, scale = FEATURES.double().mean(0) + 1, 3 * FEATURES.double().std(0)
    given = train_heads(
        FEATURES,
        LABELS,
        num_classes=3,
        heads=[Head("ce")],
        training=EXACT,
        scaler=FeatureScaler(mean, scale),
    )
    rows = ((FEATURES.double() - mean) / scale).numpy()
    oracle = LogisticRegression(C=1 / (len(LABELS) * DECAY), tol=1e-10, max_iter=10_000)
    expected = oracle.fit(rows, LABELS.numpy()).predict_log_proba(rows)
    scores = given.scores(Head("ce"), FEATURES)[0].log_softmax(1)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_heads_by_steps_take_given_moments_too():
    heads, zero = [Head("ce")], torch.zeros(5)
    settings = {"num_classes": 3, "heads": heads}
    as_they_are = HeadTraining(
        epochs=2, batch_size=32, lr=0.1, lr_end=0.01, weight_decay=0.0, standardize=False
    )
    plain = train_heads(FEATURES, LABELS, training=as_they_are, **settings)
    given = train_heads(
        FEATURES,
        LABELS,
        training=replace(as_they_are, standardize=True),
        scaler=FeatureScaler(zero, zero + 1),
        **settings,
    )
    torch.testing.assert_close(
        given.scores(heads[0], FEATURES), plain.scores(heads[0], FEATURES), atol=0, rtol=0
    )


@pytest.mark.parametrize("name", ["ce", "la", "ldam", "focal"])
def test_every_image_shown_twice_changes_no_head(name):
    # 40 epochs would be twice the steps.
    once, head = trained(name)
    twice, _ = trained(name, features=FEATURES.repeat(2, 1), labels=LABELS.repeat(2))
    torch.testing.assert_close(
        once.scores(head, FEATURES), twice.scores(head, FEATURES), atol=1e-5, rtol=0
    )


# Objectives whose logits are trained, and the one whose loss is theirs at the limit.
LOSSES = {
    name: "balanced" if objective.sampling == "class-balanced" else name
    for name, objective in OBJECTIVES.items()
    if objective.embedding is None and objective.head is None and objective.decision == "logits"
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_penalized_loss_of_an_objective_has_no_slope_at_its_head(name):
    assert len(LOSSES) == 11
    found, head = trained(name, tau=1.5)
    weight, bias, _ = found.classifier(head)
    parameters = [weight[0].requires_grad_(), bias[0].requires_grad_()]
    rows = torch.from_numpy(StandardScaler().fit_transform(FEATURES.double().numpy()))
    loss = OBJECTIVES[LOSSES[name]].loss(
        rows @ parameters[0].T + parameters[1],
        LABELS,
        torch.tensor(COUNTS).double() / len(LABELS),
        tau=1.5,
        num_samples=len(LABELS),
        deferred=True,
    )
    penalized = loss.mean() + DECAY / 2 * parameters[0].square().sum()
    for gradient in torch.autograd.grad(penalized, parameters):
        assert gradient.abs().max() < 1e-7


def test_lws_is_the_best_multiple_of_the_head_of_cross_entropy():
    found, head = trained("lws")
    base, _ = trained("ce")
    weights, biases = found.classifier(head)[:2], base.classifier(Head("ce"))[:2]
    scale = (weights[0][0] / biases[0][0]).mean(1)
    torch.testing.assert_close(weights[0][0], scale[:, None] * biases[0][0])
    torch.testing.assert_close(weights[1][0], scale * biases[1][0])
    rows = torch.from_numpy(StandardScaler().fit_transform(FEATURES.double().numpy()))
    scale.requires_grad_()
    logits = scale * (rows @ biases[0][0].T + biases[1][0])
    prior = torch.tensor(COUNTS).double() / len(LABELS)
    loss = OBJECTIVES["balanced"].loss(logits, LABELS, prior).mean()
    penalized = loss + DECAY / 2 * (scale[:, None] * biases[0][0]).square().sum()
    assert torch.autograd.grad(penalized, scale)[0].abs().max() < 1e-7
    assert scale.min() < 0.9 * scale.max()


def test_a_head_that_lws_rescales_is_solved_once_also_where_it_is_asked_for(monkeypatch):
    solved, original = [], converged_heads.optimum
    monkeypatch.setattr(
        converged_heads, "optimum", lambda *given: solved.append(given) or original(*given)
    )
    heads = [Head("lws"), Head("ce"), Head("lws", tau=0.5), Head("lws", weight_decay=0.1)]
    train_heads(FEATURES, LABELS, num_classes=len(COUNTS), heads=heads, training=EXACT)
    assert len(solved) == 2  # one for each decay


def test_a_class_without_images_is_never_predicted_and_changes_no_other(caplog):
    features, labels = blobs([60, 25])
    heads = [Head("la"), Head("focal"), Head("lws")]
    two, three = (
        train_heads(features, labels, num_classes=c, heads=heads, training=EXACT) for c in (2, 3)
    )
    assert caplog.text.count("classes 2 have no training image") == 1
    for head in heads:
        scores = three.scores(head, features)
        assert (scores[..., 2] == -torch.inf).all()
        torch.testing.assert_close(scores[..., :2], two.scores(head, features))


def test_rows_that_are_taken_in_parts_give_the_same_head(monkeypatch):
    whole, head = trained("la")
    monkeypatch.setattr(solver, "MAX_ENTRIES", 50)
    parts, _ = trained("la")
    torch.testing.assert_close(
        whole.scores(head, FEATURES), parts.scores(head, FEATURES), atol=1e-6, rtol=0
    )


def test_a_head_that_ends_early_says_so():
    with pytest.warns(ConvergenceWarning, match="stopped after 2 iterations with a gradient of"):
        trained("la", training=replace(EXACT, max_iterations=2))


QUICK = Plateau(batch_size=64, round_steps=15, improvement=1e-2, lr=3e-2, lr_end=1e-3)


def layered(heads, *, seeds=1, settings=QUICK):
    training = replace(EXACT, embedding=settings)
    return train_heads(FEATURES, LABELS, num_classes=3, heads=heads, training=training, seeds=seeds)


def test_a_head_with_an_embedding_layer_is_the_same_whatever_trains_with_it():
    crowd = layered([Head("elm"), Head("elm-pull"), Head("la")], seeds=2)
    alone = layered([Head("elm")])
    assert crowd.scores(Head("la"), FEATURES).shape[0] == 1
    scores = crowd.scores(Head("elm"), FEATURES)
    assert not torch.allclose(scores[0], scores[1], atol=1e-3)
    torch.testing.assert_close(scores[:1], alone.scores(Head("elm"), FEATURES), atol=1e-3, rtol=0)


def test_more_steps_hardly_change_a_head_that_has_reached_its_plateau():
    settings = Plateau(), Plateau(round_steps=100, improvement=5e-4)
    short, longer = (
        layered([Head("elm-pull")], settings=each).scores(Head("elm-pull"), FEATURES)
        for each in settings
    )
    torch.testing.assert_close(short.softmax(-1), longer.softmax(-1), atol=0.03, rtol=0)
    always_the_largest = COUNTS[0] / sum(COUNTS)
    assert (short.argmax(-1)[0] == LABELS).float().mean() > always_the_largest


def test_a_head_that_is_still_improving_is_named():
    with pytest.warns(ConvergenceWarning, match=r"1 of 1 heads, Head\(objective='elm'.* 30 steps"):
        layered([Head("elm")], settings=replace(QUICK, max_rounds=2))
