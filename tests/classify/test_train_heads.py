import itertools
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sslgh.classify import OBJECTIVES, Head, HeadTraining, train_heads
from sslgh.classify.adam_heads import sample_orders
from sslgh.classify.embedding_terms import TermInput, TermSettings
from sslgh.evaluation.protocols import GH_HEADS
from sslgh.functional import embedding_margin
from sslgh.functional.groups import class_accuracy

CONVERGED = HeadTraining(
    epochs=1000, batch_size=10_000, lr=0.1, lr_end=1e-2, weight_decay=1e-2, standardize=False
)
UNPENALIZED = HeadTraining(epochs=40, batch_size=500, lr=0.3, lr_end=1e-2, weight_decay=0.0)
LONGTAIL_SMALL = HeadTraining(30, 64, 1e-2, 1e-4, 1e-3)
SHORT = HeadTraining(epochs=3, batch_size=32, lr=1e-2, lr_end=1e-3, weight_decay=1e-3)

CROWD = [Head(name, tau=tau, lr=lr) for name in OBJECTIVES for tau, lr in ((1.0, None), (0.5, 0.1))]


def gaussians(positives, negatives, seed):
    """The problem of the LA paper: means y(1, 1), unit variance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.ones(positives), torch.zeros(negatives)]).long()
    return torch.randn(len(labels), 2, generator=generator) + (2.0 * labels - 1)[:, None], labels


def blobs(counts, seed=0, width=8, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(99))
    return centers[labels] + noise * torch.randn(len(labels), width, generator=generator), labels


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
            heads=[Head("ce"), Head("la"), Head("la-posthoc")],
            training=UNPENALIZED,
        )
        test, truth = gaussians(500, 9500, seed=100 + trial)
        bayes = balanced_error((test.sum(1) > 0).long(), truth, 2)
        gaps.append(
            [balanced_error(heads.predict(head, test)[0], truth, 2) - bayes for head in heads.heads]
        )
    ce, la, post_hoc = np.mean(gaps, axis=0)
    # The affine classifier of cross-entropy errs on Phi(-0.373) of the positives: 0.18 against 0.079.
    assert ce == pytest.approx(0.102, abs=0.02)
    assert abs(la) < 0.006
    assert abs(post_hoc) < 0.006


def test_cross_entropy_is_the_logistic_regression_of_scikit_learn():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features, labels, num_classes=3, heads=[Head("ce")], training=CONVERGED, seeds=2
    )
    oracle = LogisticRegression(C=1 / (100 * CONVERGED.weight_decay), tol=1e-8, max_iter=1000)
    expected = oracle.fit(features.numpy(), labels.numpy()).predict_proba(features.numpy())
    for scores in heads.scores(Head("ce"), features):
        np.testing.assert_allclose(scores.softmax(-1), expected, atol=2e-3)


def test_la_loss_and_la_post_hoc_agree_at_the_optimum_of_a_linear_head():
    # A bias that is not decayed takes up the whole adjustment.
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features, labels, num_classes=3, heads=[Head("la"), Head("la-posthoc")], training=CONVERGED
    )
    la, post_hoc = (heads.scores(name, features).softmax(-1) for name in heads.heads)
    torch.testing.assert_close(la, post_hoc, atol=3e-3, rtol=0)


def test_adjusting_afterwards_shifts_the_scores_of_cross_entropy_by_the_log_prior():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features,
        labels,
        num_classes=3,
        heads=[Head("ce"), Head("la-posthoc", tau=2.0)],
        training=SHORT,
        seeds=2,
    )
    ce, post_hoc = (heads.scores(head, features) for head in heads.heads)
    shift = ce - post_hoc
    expected = 2 * torch.tensor([0.6, 0.3, 0.1]).log()
    torch.testing.assert_close(shift, expected.expand_as(shift))


@pytest.fixture(scope="module")
def crowd():
    features, labels = blobs([60, 30, 10])
    return train_heads(features, labels, num_classes=3, heads=CROWD, training=SHORT, seeds=3)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_head_is_the_same_whatever_trains_with_it(objective, crowd):
    features, labels = blobs([60, 30, 10])
    head = Head(objective)
    alone = train_heads(features, labels, num_classes=3, heads=[head], training=SHORT)
    torch.testing.assert_close(
        crowd.scores(head, features)[:1], alone.scores(head, features), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("epochs", [0, 3])
def test_seeds_start_differently_and_repeat_exactly(epochs):
    features, labels = blobs([60, 30, 10])
    training = replace(SHORT, epochs=epochs)
    first, second = (
        train_heads(
            features, labels, num_classes=3, heads=[Head("elm")], training=training, seeds=2
        )
        for _ in range(2)
    )
    scores = first.scores(Head("elm"), features)
    assert torch.equal(scores, second.scores(Head("elm"), features))
    assert (scores[0] - scores[1]).abs().max() > 0.05


def test_standardizing_makes_the_scale_of_a_feature_irrelevant():
    features, labels = blobs([60, 30, 10])
    scaled = features * torch.logspace(-3, 3, 8) + 5
    predictions = [
        train_heads(x, labels, num_classes=3, heads=[Head("la")], training=SHORT).scores(
            Head("la"), x
        )
        for x in (features, scaled)
    ]
    torch.testing.assert_close(*predictions, atol=2e-2, rtol=0)


def test_a_constant_feature_is_harmless():
    features, labels = blobs([60, 30, 10])
    constant = torch.cat([features, torch.full((100, 1), 0.1)], 1)
    heads = train_heads(constant, labels, num_classes=3, heads=[Head("la")], training=SHORT)
    other = constant.clone()
    other[:, -1] += 1e-3
    torch.testing.assert_close(
        heads.scores(Head("la"), constant), heads.scores(Head("la"), other), atol=1e-2, rtol=0
    )


def test_the_embedding_term_is_smaller_when_it_was_trained(monkeypatch):
    features, labels = blobs([200, 60, 20, 8], width=16, noise=1.5)
    terms = []
    for weight in (0.0, 0.35):
        objective = replace(OBJECTIVES["elm"], embedding_weight=weight)
        monkeypatch.setitem(OBJECTIVES, "elm", objective)
        heads = train_heads(
            features, labels, num_classes=4, heads=[Head("elm")], training=LONGTAIL_SMALL
        )
        z = heads.embeddings(Head("elm"), features)[0]
        terms.append(embedding_margin(z, labels, heads.prior, tau=1.0, temperature=0.1).mean())
    assert terms[1] < 0.9 * terms[0]


def test_only_an_objective_with_an_embedding_layer_has_embeddings():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features,
        labels,
        num_classes=3,
        heads=[Head("elm"), Head("la-posthoc")],
        training=SHORT,
        seeds=2,
    )
    assert heads.embeddings(Head("elm"), features).shape == (2, 100, 8)
    assert heads.embeddings(Head("la-posthoc"), features) is None


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_class_without_training_images_is_never_predicted_and_named_once(objective, caplog):
    features, labels = blobs([60, 0, 30, 10])
    with caplog.at_level(logging.WARNING):
        heads = train_heads(
            features, labels, num_classes=4, heads=[Head(objective)], training=SHORT, seeds=2
        )
    assert [record.getMessage() for record in caplog.records] == [
        "classes 1 have no training image and are never predicted"
    ]
    scores = heads.scores(Head(objective), features)
    assert (scores[..., 1] == -math.inf).all()
    assert scores[..., [0, 2, 3]].isfinite().all()


def test_labels_with_many_gaps_are_warned_of_in_a_short_line(caplog):
    features, labels = blobs([20, 20])
    with caplog.at_level(logging.WARNING):
        train_heads(
            features, labels * 998, num_classes=1000, heads=[Head("ce")], training=SHORT, seeds=1
        )
    assert [record.getMessage() for record in caplog.records] == [
        "classes 1, 2, 3 and 995 more have no training image and are never predicted"
    ]


def test_predicting_in_parts_changes_nothing():
    features, labels = blobs([60, 30, 10])
    heads = train_heads(
        features, labels, num_classes=3, heads=[Head("elm")], training=SHORT, seeds=2
    )
    assert torch.equal(
        heads.predict(Head("elm"), features), heads.predict(Head("elm"), features, batch_size=7)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_paper_s_probe_is_adam_on_a_linear_layer_as_written_in_torch(seed):
    """GH's linear probing (facts 2.1) as a plain loop, with the start and order of a seed."""
    features, labels = blobs([60, 60, 60])
    training = replace(GH_HEADS, epochs=7, batch_size=50)
    heads = train_heads(
        features, labels, num_classes=3, heads=[Head("ce")], training=training, seeds=2
    )
    untrained = replace(GH_HEADS, epochs=0)
    start = train_heads(
        features, labels, num_classes=3, heads=[Head("ce")], training=untrained, seeds=2
    )

    linear = torch.nn.Linear(8, 3)
    origin = start.scores(Head("ce"), torch.zeros(1, 8))[seed, 0]
    with torch.no_grad():
        linear.bias.copy_(origin)
        linear.weight.copy_((start.scores(Head("ce"), torch.eye(8))[seed] - origin).T)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-2, weight_decay=5e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-6 / 1e-2) ** (1 / 7))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(7):
        for rows in torch.randperm(180, generator=generator).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(features[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    torch.testing.assert_close(
        heads.scores(Head("ce"), features)[seed], linear(features).detach(), atol=1e-4, rtol=0
    )


def test_the_start_is_drawn_in_the_range_of_a_linear_layer():
    features, labels = torch.randn(50, 400), torch.arange(50) % 5
    untrained = HeadTraining(0, 10, 1e-2, 1e-4, 0.0, standardize=False)
    heads = train_heads(features, labels, num_classes=5, heads=[Head("ce")], training=untrained)
    weight = heads.scores(Head("ce"), torch.eye(400)) - heads.scores(
        Head("ce"), torch.zeros(1, 400)
    )
    assert 0.99 / 20 < weight.abs().max() <= 1.001 / 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": [Head("cos")]}, "unknown objective 'cos'; known are ce, balanced, effective"),
        ({"heads": []}, "no heads"),
        (
            {"heads": [Head("la", tau=-1.0)]},
            r"must not be negative, got Head\(objective='la', tau=-1",
        ),
        ({"heads": [Head("ce", weight_decay=-0.1)]}, "must not be negative"),
        ({"heads": [Head("ce", lr=0.0)]}, "lr must be positive"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0, 1.0])}, "must be integers, got torch.float32"),
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
        "heads": [Head("ce")],
    }
    with pytest.raises(ValueError, match=message):
        train_heads(num_classes=3, training=SHORT, **(arguments | changes))


def test_a_training_that_diverges_says_so():
    features, labels = blobs([60, 30, 10])
    mad = HeadTraining(3, 50, 1e37, 1e37, 0.0, standardize=False)
    with pytest.raises(
        ValueError, match=r"1 of 2 heads diverged, Head\(objective='ce'.* lr=1e\+37"
    ):
        train_heads(
            features, labels, num_classes=3, heads=[Head("ce"), Head("ce", lr=0.1)], training=mad
        )


def loop(features, labels, head, training, start, seed):
    """One head as one writes it: `nn.Linear`, `torch.optim.Adam`, a scheduler, L2 in the gradient."""
    objective = OBJECTIVES[head.objective]
    prior = torch.bincount(labels) / len(labels)
    layers = [torch.nn.Linear(start.weight.shape[2], 3)]
    with torch.no_grad():
        layers[0].weight.copy_(start.weight[seed])
        layers[0].bias.copy_(start.bias[seed])
        if start.embedding is not None:
            layers.append(torch.nn.Linear(8, len(start.embedding[seed]), bias=False))
            layers[1].weight.copy_(start.embedding[seed])
    groups = [{"params": [layer.weight for layer in layers], "weight_decay": head.weight_decay}]
    optimizer = torch.optim.Adam([*groups, {"params": [layers[0].bias]}], lr=head.lr)
    gamma = (training.lr_end / training.lr) ** (1 / training.epochs)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    rows_of = sample_orders(labels, objective.sampling, seeds=seed + 1, epochs=training.epochs)
    for epoch, rows in enumerate(rows_of):
        for part in rows[seed].split(training.batch_size):
            x, y = features[part], labels[part]
            z = layers[1](x) if len(layers) > 1 else x
            late = epoch >= 0.8 * training.epochs
            loss = objective.loss(
                layers[0](z), y, prior, tau=head.tau, num_samples=len(labels), deferred=late
            ).mean()
            if objective.embedding is not None:
                settings = TermSettings(tau=head.tau)
                term = objective.embedding(
                    TermInput(z[:, None], y, layers[0].weight, prior, settings, None)
                )
                loss = loss + 0.35 * term.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return layers


LOOPED = [name for name, o in OBJECTIVES.items() if o.head is None and o.decision == "logits"]


def test_every_head_is_the_one_a_plain_loop_trains_at_its_own_tau_rate_and_decay():
    assert len(LOOPED) == 18
    features, labels = blobs([60, 30, 10])
    training = HeadTraining(5, 32, 1e-2, 1e-3, 1e-3, standardize=False, embedding_width=5)
    settings = itertools.cycle([(0.5, 3e-3, 1e-2), (1.0, 1e-2, 0.0), (2.0, 3e-2, 0.1)])
    heads = [Head(name, *values) for name, values in zip(LOOPED, settings, strict=False)]
    problem = {"features": features, "labels": labels, "num_classes": 3, "heads": heads, "seeds": 2}
    trained = train_heads(**problem, training=training)
    start = train_heads(**problem, training=replace(training, epochs=0))
    for head in heads:
        layers = loop(features, labels, head, training, start.classifier(head), seed=1)
        found = trained.classifier(head)
        torch.testing.assert_close(found.weight[1], layers[0].weight.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found.bias[1], layers[0].bias.detach(), atol=2e-5, rtol=1e-4)
        if found.embedding is not None:
            torch.testing.assert_close(
                found.embedding[1], layers[1].weight.detach(), atol=2e-5, rtol=1e-4
            )
    assert sum(trained.classifier(head).embedding is not None for head in heads) == 7


def test_heads_that_differ_in_their_decision_only_are_trained_once():
    features, labels = blobs([60, 30, 10])
    heads = [
        Head("ce"),
        Head("ce", tau=0.3, lr=SHORT.lr),
        Head("la-posthoc", tau=0.5),
        Head("tau-norm", tau=0.5, weight_decay=SHORT.weight_decay),
        Head("ce", lr=0.5),
    ]
    trained = train_heads(features, labels, num_classes=3, heads=heads, training=SHORT)
    places = [trained.classifier(head).weight.data_ptr() for head in heads]
    assert len(set(places[:4])) == 1
    assert places[4] not in places[:4]


def test_integers_and_floats_of_any_width_are_accepted():
    features, labels = blobs([60, 30, 10])
    scores = [
        train_heads(x, y, num_classes=3, heads=[Head("la")], training=SHORT).scores(Head("la"), x)
        for x, y in ((features, labels), (features.double(), labels.int()))
    ]
    assert torch.equal(*scores)


ORDERED = torch.tensor([0] * 12 + [1] * 5 + [2])


def test_instances_come_once_per_epoch_in_the_order_of_their_seed():
    found = list(sample_orders(ORDERED, "instance", seeds=3, epochs=2))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for rows in found:
            assert torch.equal(rows[seed], torch.randperm(18, generator=generator))


def test_classes_come_equally_often_and_a_seed_does_not_depend_on_the_others():
    few = list(sample_orders(ORDERED, "class-balanced", seeds=1, epochs=3))
    many = list(sample_orders(ORDERED, "class-balanced", seeds=2, epochs=3))
    assert len(few) == 3
    for alone, together in zip(few, many, strict=True):
        assert torch.equal(alone[0], together[0])
        assert not torch.equal(together[0], together[1])
        for rows in together:
            assert torch.bincount(ORDERED[rows]).tolist() == [6, 6, 6]
