import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from sslgh.classify import OBJECTIVES, Head, HeadTraining, train_heads
from sslgh.classify.adam_heads import sample_orders

SHORT = HeadTraining(epochs=4, batch_size=32, lr=3e-2, lr_end=1e-2, weight_decay=1e-3)
RAW = HeadTraining(4, 32, 3e-2, 1e-2, 1e-3, standardize=False)
CONVERGED = HeadTraining(800, 1000, lr=0.1, lr_end=1e-2, weight_decay=1e-2, standardize=False)


def blobs(counts, seed=0, width=8):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(99))
    return centers[labels] + torch.randn(len(labels), width, generator=generator), labels


def train(*heads, training=SHORT, counts=(60, 30, 10), seeds=2):
    features, labels = blobs(list(counts))
    trained = train_heads(
        features, labels, num_classes=len(counts), heads=heads, training=training, seeds=seeds
    )
    return trained, features, labels


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_normalization_divides_weights_by_their_length_and_has_no_bias(tau):
    head = Head("tau-norm", tau=tau)
    trained, features, _ = train(Head("ce"), head, training=RAW)
    weight = trained.classifier(Head("ce")).weight.double()
    expected = torch.tensor(
        [
            [[(w @ x / math.sqrt(w @ w) ** tau).item() for w in rows] for x in features.double()]
            for rows in weight
        ]
    )
    torch.testing.assert_close(trained.scores(head, features), expected.float(), atol=1e-5, rtol=0)
    norms = weight.norm(dim=-1) ** (1 - tau)
    torch.testing.assert_close(trained.weight_norms(head).double(), norms)
    assert (trained.weight_norms(Head("ce")) != 1).all()


def test_the_nearest_class_mean_is_by_cosine_to_the_mean_of_the_raw_features():
    trained, features, labels = train(Head("ncm"), training=RAW)
    means = np.stack([features[labels == c].numpy().mean(0) for c in range(3)])
    expected = cosine_similarity(features.numpy(), means)
    for scores in trained.scores(Head("ncm"), features):
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert trained.weight_norms(Head("ncm")) is None
    assert trained.embeddings(Head("ncm"), features) is None


def test_learned_scales_multiply_the_finished_head_and_are_trained_on_balanced_classes():
    heads = Head("ce", weight_decay=0.3), Head("lws", weight_decay=0.3)
    trained, features, labels = train(*heads, training=RAW)
    ce, lws = (trained.classifier(head) for head in heads)
    seed = 1
    logits = features @ ce.weight[seed].T + ce.bias[seed]
    scale = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([scale], lr=3e-2)  # not decayed
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, (1 / 3) ** 0.25)
    for rows in sample_orders(labels, "class-balanced", seeds=2, epochs=4):
        for part in rows[seed].split(32):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(scale * logits[part], labels[part]).backward()
            adam.step()
        schedule.step()
    assert (scale - 1).abs().min() > 1e-3
    scale = scale.detach()
    torch.testing.assert_close(lws.weight[seed], scale[:, None] * ce.weight[seed])
    torch.testing.assert_close(lws.bias[seed], scale * ce.bias[seed])


def test_retraining_on_balanced_classes_finds_the_tail():
    trained, _, _ = train(Head("ce"), Head("crt"), counts=(400, 30, 6))
    test, truth = blobs([200, 200, 200], seed=5)
    few = [
        (trained.predict(head, test)[:, truth == 2] == 2).float().mean() for head in trained.heads
    ]
    assert few[1] > few[0] + 0.1


def test_the_scores_for_the_training_prior_are_those_of_cross_entropy():
    heads = [Head(name) for name in ("ce", "la", "la-weighted", "la-posthoc")]
    trained, features, _ = train(*heads, training=CONVERGED, seeds=1)
    ce = trained.scores(Head("ce"), features).softmax(-1)
    for head in heads[1:]:
        posterior = trained.scores(head, features, trained.prior).softmax(-1)
        tolerance = 0.15 if head.objective == "la-weighted" else 5e-3  # another loss, decayed
        torch.testing.assert_close(posterior, ce, atol=tolerance, rtol=0)
        assert (trained.scores(head, features).softmax(-1) - ce).abs().max() > 0.1


def test_a_test_prior_shifts_scores_and_predictions_by_its_log():
    heads = [Head(name) for name, objective in OBJECTIVES.items() if objective.shifts]
    trained, features, _ = train(*heads)
    q = torch.tensor([0.2, 0.7, 0.1])
    for head in heads:
        equal = trained.scores(head, features, torch.full((3,), 1 / 3))
        shifted = trained.scores(head, features, q)
        shift = (shifted - equal)[0, 0]
        torch.testing.assert_close(shift, (3 * q).log(), atol=1e-5, rtol=0)
        assert torch.equal(trained.predict(head, features, q), shifted.argmax(-1))


def test_an_unknown_head_width_or_prior_is_refused_in_one_sentence():
    trained, features, _ = train(Head("la"), Head("ldam"))
    for arguments, message in (
        ((Head("ce"), features), "was not trained; there are Head"),
        ((Head("la"), features[:, :5]), r"trained on features \(N, 8\), got \(100, 5\)"),
        ((Head("la"), features[0]), r"trained on features \(N, 8\), got \(8,\)"),
        ((Head("la"), features / 0), "100 of 100 rows hold nan or inf"),
        ((Head("la"), features, torch.ones(3)), "sum to 1, got a sum of 3"),
        ((Head("la"), features, torch.ones(2) / 2), r"must have shape \(3,\).*got \(2,\)"),
        ((Head("ldam"), features, torch.ones(3) / 3), "cannot be brought to a test prior"),
    ):
        with pytest.raises(ValueError, match=message):
            trained.scores(*arguments)
