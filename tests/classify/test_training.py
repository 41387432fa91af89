import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sslgh.classify import OBJECTIVES, HeadTraining, train_heads
from sslgh.evaluation.protocols import GH_HEADS
from sslgh.functional import embedding_margin
from sslgh.functional.groups import class_accuracy

CONVERGED = HeadTraining(
    epochs=1000, batch_size=10_000, lr=0.1, lr_end=1e-2, weight_decay=1e-2, standardise=False
)
UNPENALISED = HeadTraining(epochs=40, batch_size=500, lr=0.3, lr_end=1e-2, weight_decay=0.0)
LONGTAIL_SMALL = HeadTraining(30, 64, 1e-2, 1e-4, 1e-3)
SHORT = HeadTraining(epochs=3, batch_size=32, lr=1e-2, lr_end=1e-3, weight_decay=1e-3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Two threads wait for each other in many small products when the machine is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussians(positives, negatives, seed):
    """The problem of the LA paper: means y(1, 1), unit variance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.ones(positives), torch.zeros(negatives)]).long()
    return torch.randn(len(labels), 2, generator=generator) + (2.0 * labels - 1)[:, None], labels


def blobs(counts, seed=0, width=8, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + noise * torch.randn(len(labels), width, generator=generator), labels


def balanced_error(predictions, labels, classes):
    return 1 - class_accuracy(predictions, labels, classes).mean().item()


def test_logit_adjustment_reaches_the_bayes_line_and_cross_entropy_does_not():
    gaps = []
    for trial in range(2):
        features, labels = gaussians(500, 9500, seed=trial)
        heads = train_heads(
            features,
            labels,
            num_classes=2,
            objectives=["ce", "la", "la-posthoc"],
            training=UNPENALISED,
        )
        test, truth = gaussians(500, 9500, seed=100 + trial)
        bayes = balanced_error((test.sum(1) > 0).long(), truth, 2)
        gaps.append(
            [balanced_error(heads.predict(o, test)[0], truth, 2) - bayes for o in heads.objectives]
        )
    ce, la, post_hoc = np.mean(gaps, axis=0)
    # The affine classifier of cross-entropy errs on Phi(-0.373) of the positives: 0.18 against 0.079.
    assert ce == pytest.approx(0.102, abs=0.02)
    assert abs(la) < 0.006
    assert abs(post_hoc) < 0.006


def test_cross_entropy_is_the_logistic_regression_of_scikit_learn():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features, labels, num_classes=3, objectives=["ce"], training=CONVERGED, seeds=2
    )
    oracle = LogisticRegression(C=1 / (100 * CONVERGED.weight_decay), tol=1e-8, max_iter=1000)
    expected = oracle.fit(features.numpy(), labels.numpy()).predict_proba(features.numpy())
    for scores in heads.scores("ce", features):
        np.testing.assert_allclose(scores.softmax(-1), expected, atol=2e-3)


def test_la_loss_and_la_post_hoc_agree_at_the_optimum_of_a_linear_head():
    # A bias that is not decayed takes up the whole adjustment.
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features, labels, num_classes=3, objectives=["la", "la-posthoc"], training=CONVERGED
    )
    la, post_hoc = (heads.scores(name, features).softmax(-1) for name in heads.objectives)
    torch.testing.assert_close(la, post_hoc, atol=3e-3, rtol=0)


def test_adjusting_afterwards_shifts_the_scores_of_cross_entropy_by_the_log_prior():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features,
        labels,
        num_classes=3,
        objectives=["ce", "la-posthoc"],
        training=SHORT,
        tau=2.0,
        seeds=2,
    )
    shift = heads.scores("ce", features) - heads.scores("la-posthoc", features)
    expected = 2 * torch.tensor([0.6, 0.3, 0.1]).log()
    torch.testing.assert_close(shift, expected.expand_as(shift))


@pytest.mark.parametrize("objective", ["ce", "la", "elm"])
def test_a_head_is_the_same_whatever_trains_beside_it(objective):
    features, labels = blobs([60, 30, 10])
    alone = train_heads(
        features, labels, num_classes=3, objectives=[objective], training=SHORT, seeds=1
    )
    crowd = train_heads(
        features, labels, num_classes=3, objectives=list(OBJECTIVES), training=SHORT, seeds=3
    )
    torch.testing.assert_close(
        crowd.scores(objective, features)[:1], alone.scores(objective, features), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("epochs", [0, 3])
def test_seeds_start_differently_and_repeat_exactly(epochs):
    features, labels = blobs([60, 30, 10])
    training = replace(SHORT, epochs=epochs)
    first, second = (
        train_heads(features, labels, num_classes=3, objectives=["elm"], training=training, seeds=2)
        for _ in range(2)
    )
    scores = first.scores("elm", features)
    assert torch.equal(scores, second.scores("elm", features))
    assert (scores[0] - scores[1]).abs().max() > 0.05


def test_standardising_makes_the_scale_of_a_feature_irrelevant():
    features, labels = blobs([60, 30, 10])
    scaled = features * torch.logspace(-3, 3, 8) + 5
    predictions = [
        train_heads(x, labels, num_classes=3, objectives=["la"], training=SHORT).scores("la", x)
        for x in (features, scaled)
    ]
    torch.testing.assert_close(*predictions, atol=2e-2, rtol=0)


def test_a_constant_feature_is_harmless():
    features, labels = blobs([60, 30, 10])
    constant = torch.cat([features, torch.full((100, 1), 0.1)], 1)
    heads = train_heads(constant, labels, num_classes=3, objectives=["la"], training=SHORT)
    other = constant.clone()
    other[:, -1] += 1e-3
    torch.testing.assert_close(
        heads.scores("la", constant), heads.scores("la", other), atol=1e-2, rtol=0
    )


def test_the_embedding_term_is_smaller_when_it_was_trained(monkeypatch):
    features, labels = blobs([200, 60, 20, 8], width=16, noise=1.5)
    terms = []
    for weight in (0.0, 0.35):
        monkeypatch.setattr("sslgh.classify.training.EMBEDDING_WEIGHT", weight)
        heads = train_heads(
            features, labels, num_classes=4, objectives=["elm"], training=LONGTAIL_SMALL
        )
        z = heads.embeddings("elm", features)[0]
        terms.append(embedding_margin(z, labels, heads.prior, tau=1.0, temperature=0.1).mean())
    assert terms[1] < 0.9 * terms[0]


def test_only_an_objective_with_an_embedding_layer_has_embeddings():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features,
        labels,
        num_classes=3,
        objectives=["elm", "la-posthoc"],
        training=SHORT,
        seeds=2,
    )
    assert heads.embeddings("elm", features).shape == (2, 100, 8)
    assert heads.embeddings("la-posthoc", features) is None


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_class_without_training_images_is_never_predicted_and_named_once(objective, caplog):
    features, labels = blobs([60, 0, 30, 10])
    with caplog.at_level(logging.WARNING):
        heads = train_heads(
            features, labels, num_classes=4, objectives=[objective], training=SHORT, seeds=2
        )
    assert [record.getMessage() for record in caplog.records] == [
        "classes [1] have no training image and are never predicted"
    ]
    scores = heads.scores(objective, features)
    assert (scores[..., 1] == -math.inf).all()
    assert scores[..., [0, 2, 3]].isfinite().all()


def test_predicting_in_parts_changes_nothing():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features, labels, num_classes=3, objectives=["elm"], training=SHORT, seeds=2
    )
    assert torch.equal(heads.predict("elm", features), heads.predict("elm", features, batch_size=7))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_paper_s_probe_is_adam_on_a_linear_layer_as_written_in_torch(seed):
    """GH's linear probing (facts 2.1) as a plain loop, with the start and order of a seed."""
    features, labels = blobs([60, 60, 60])
    training = replace(GH_HEADS, epochs=7, batch_size=50)
    heads = train_heads(
        features, labels, num_classes=3, objectives=["ce"], training=training, seeds=2
    )
    untrained = replace(GH_HEADS, epochs=0)
    start = train_heads(
        features, labels, num_classes=3, objectives=["ce"], training=untrained, seeds=2
    )

    linear = torch.nn.Linear(8, 3)
    origin = start.scores("ce", torch.zeros(1, 8))[seed, 0]
    with torch.no_grad():
        linear.bias.copy_(origin)
        linear.weight.copy_((start.scores("ce", torch.eye(8))[seed] - origin).T)
    optimiser = torch.optim.Adam(linear.parameters(), lr=1e-2, weight_decay=5e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, (1e-6 / 1e-2) ** (1 / 7))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(7):
        for rows in torch.randperm(180, generator=generator).split(50):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(linear(features[rows]), labels[rows]).backward()
            optimiser.step()
        schedule.step()
    torch.testing.assert_close(
        heads.scores("ce", features)[seed], linear(features).detach(), atol=1e-4, rtol=0
    )


def test_the_start_is_drawn_in_the_range_of_a_linear_layer():
    features, labels = torch.randn(50, 400), torch.arange(50) % 5
    untrained = HeadTraining(0, 10, 1e-2, 1e-4, 0.0, standardise=False)
    heads = train_heads(features, labels, num_classes=5, objectives=["ce"], training=untrained)
    weight = heads.scores("ce", torch.eye(400)) - heads.scores("ce", torch.zeros(1, 400))
    assert 0.99 / 20 < weight.abs().max() <= 1.001 / 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ["cos"]}, "unknown objective 'cos'; known are ce, la, la-posthoc, elm"),
        ({"features": torch.full((4, 2), torch.nan)}, "4 of 4 rows hold nan or inf"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"must lie in 0\.\.2, got 0\.\.3"),
        ({"labels": torch.tensor([0, 1, -1, 1])}, r"must lie in 0\.\.2, got -1\.\.1"),
        ({"labels": torch.tensor([1, 1, 1, 1])}, "at least 2 classes, all 4 have label 1"),
        ({"features": torch.zeros(3, 2)}, r"got \(3, 2\) and \(4,\)"),
        ({"features": torch.zeros(0, 2), "labels": torch.zeros(0)}, r"got \(0, 2\)"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(changes, message):
    arguments = {
        "features": torch.zeros(4, 2),
        "labels": torch.tensor([0, 1, 2, 1]),
        "objectives": ["ce"],
    }
    with pytest.raises(ValueError, match=message):
        train_heads(num_classes=3, training=SHORT, **(arguments | changes))


def test_a_training_that_diverges_says_so():
    features, labels = blobs([60, 30, 10])
    mad = HeadTraining(3, 50, 1e37, 1e37, 0.0, standardise=False)
    with pytest.raises(RuntimeError, match="diverged"):
        train_heads(features, labels, num_classes=3, objectives=["ce"], training=mad)
