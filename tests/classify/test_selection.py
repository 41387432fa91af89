import logging
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import recall_score

from sslgh.classify import Head, HeadTraining, select_heads, train_heads
from sslgh.classify.selection import stratified_folds

SHORT = HeadTraining(epochs=5, batch_size=64, lr=1e-2, lr_end=1e-3, weight_decay=1e-3)


def blobs(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), 6, generator=torch.Generator().manual_seed(99))
    return centers[labels] + torch.randn(len(labels), 6, generator=generator), labels


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_fold_has_its_share_of_every_class_that_can_be_held_out(folds):
    counts = torch.tensor([50, 23, 7, 5, 4, 3, 2, 1, 0, 1])
    labels = torch.arange(10).repeat_interleave(counts)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    part = stratified_folds(labels, folds)
    assert (part[counts[labels] == 1] == -1).all()
    assert (part[counts[labels] > 1] >= 0).all()
    table = torch.stack([(labels == c) & (part == k) for c in range(10) for k in range(folds)])
    table = table.sum(1).view(10, folds)
    assert (table.amax(1) - table.amin(1) <= 1).all()
    assert table.sum(0).amax() - table.sum(0).amin() <= 1
    # Whatever fold is out, each class keeps an image to train on.
    assert (counts[:, None] - table)[counts > 0].min() >= 1


def test_folds_follow_their_seed_and_break_runs_in_the_file():
    labels = torch.arange(3).repeat_interleave(20)
    first, again, other = (stratified_folds(labels, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:20], torch.arange(20) % 5)


def test_the_choice_is_by_balanced_accuracy_over_out_of_fold_predictions():
    features, labels = blobs([150, 40, 12, 3, 1])
    lists = {
        "la": [Head("la", tau=tau, lr=lr) for tau in (0.0, 1.0, 2.0) for lr in (1e-3, 0.1)],
        "ce": [Head("ce", weight_decay=decay) for decay in (1.0, 1e-3, 1e-1)],
        "ncm": [Head("ncm")],
        "either": [Head("ce"), Head("elm"), Head("crt")],
    }
    chosen = select_heads(
        features, labels, num_classes=5, candidates=lists, training=SHORT, folds=3, seed=4
    )
    part = stratified_folds(labels, 3, seed=4)
    answers = {}
    for fold in range(3):
        out = part == fold
        for head in {head for choice in lists.values() for head in choice}:
            alone = train_heads(
                features[~out], labels[~out], num_classes=5, heads=[head], training=SHORT
            )
            found = alone.predict(head, features[out])[0]
            answers.setdefault(head, torch.full_like(labels, -1))[out] = found
    held = part >= 0
    assert held.sum() == len(labels) - 1
    for name, choice in lists.items():
        # The class with a single image is predicted now and then, and never judged.
        accuracy = [
            recall_score(labels[held], answers[head][held], labels=range(4), average="macro")
            for head in choice
        ]
        assert chosen[name] == choice[accuracy.index(max(accuracy))]


def test_the_choice_finds_the_rate_that_learns_wherever_it_stands():
    features, labels = blobs([80, 40, 20])
    lazy, able = Head("la", lr=1e-9), Head("la", lr=3e-2)
    for choice in ([lazy, able], [able, lazy]):
        chosen = select_heads(
            features, labels, num_classes=3, candidates={"la": choice}, training=SHORT
        )
        assert chosen == {"la": able}


def test_no_head_has_seen_what_it_is_judged_on():
    # Twins of opposite labels, each with a mark of its own: who saw both knows both by their marks, who saw one
    # takes the other for the same.
    twins, marks = torch.eye(25).repeat(2, 1), torch.eye(50)
    features, labels = torch.cat([twins, 0.5 * marks], 1), torch.arange(2).repeat_interleave(25)
    lazy, eager = Head("ce", lr=1e-9), Head("ce", lr=0.1)
    training = replace(SHORT, epochs=40, weight_decay=0.0, standardize=False)
    problem = {"features": features, "labels": labels, "num_classes": 2, "training": training}
    assert (train_heads(heads=[eager], **problem).predict(eager, features) == labels).all()
    assert select_heads(candidates={"ce": [eager, lazy]}, **problem) == {"ce": lazy}


def test_of_equals_the_first_is_chosen():
    features, labels = blobs([80, 40, 20])
    same = [Head("ce", tau=2.0), Head("ce", tau=1.0), Head("ce", lr=SHORT.lr)]
    for choice in (same, same[::-1]):
        chosen = select_heads(
            features, labels, num_classes=3, candidates={"ce": choice}, training=SHORT
        )
        assert chosen["ce"] == choice[0]


def test_where_there_is_nothing_to_choose_nothing_is_trained(caplog):
    features, labels = blobs([80, 0, 1])
    diverging = replace(SHORT, lr=1e37, lr_end=1e37)
    chosen = select_heads(
        features, labels, num_classes=3, candidates={"a": [Head("ce")]}, training=diverging
    )
    assert chosen == {"a": Head("ce")}


def test_more_folds_than_images_and_classes_without_any_are_handled_in_silence(caplog):
    features, labels = blobs([4, 0, 2, 1])
    with caplog.at_level(logging.WARNING):
        chosen = select_heads(
            features,
            labels,
            num_classes=4,
            candidates={"la": [Head("la"), Head("la", tau=0.5)]},
            training=SHORT,
            folds=9,
        )
    assert set(chosen) == {"la"}
    assert caplog.records == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": {"la": [Head("la")], "ce": []}}, "no head to choose for 'ce'"),
        ({"candidates": {"la": [Head("la"), Head("no")]}}, "unknown objective 'no'"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "every class has a single sample"),
        ({"labels": torch.tensor([0, 1, 2, 9])}, r"must lie in 0\.\.3, got 0\.\.9"),
        ({"features": torch.full((4, 2), torch.nan)}, "4 of 4 rows hold nan or inf"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_in_one_sentence(changes, message):
    arguments = {
        "features": torch.zeros(4, 2),
        "labels": torch.tensor([0, 1, 2, 1]),
        "candidates": {"la": [Head("la"), Head("la", tau=2.0)]},
    }
    with pytest.raises(ValueError, match=message):
        select_heads(num_classes=4, training=SHORT, **(arguments | changes))
