import math
from statistics import harmonic_mean, mean, stdev

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from sslgh.evaluation import evaluate_scores, group_tightness
from sslgh.evaluation.results import CONVENTIONS, METRICS, Spread
from sslgh.evaluation.scoring import predict
from sslgh.functional.groups import shot_groups

COUNTS = torch.tensor([500, 200, 60, 30, 10, 4])


def classifier(seeds=3, images=300, classes=6):
    """Scores of so many classifiers, right in about half of the cases, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=generator)
    scores = torch.randn(seeds, images, classes, generator=generator)
    hints = torch.nn.functional.one_hot(labels, classes)
    tilt = torch.linspace(1, 0, classes)  # the first classes are preferred
    return 1.5 * scores + 2 * hints + tilt, labels


def naive_calibration(scores, labels, bins=15):
    """Expected calibration error of one classifier (N, C), image by image."""
    held = [[] for _ in range(bins)]
    for row, label in zip(scores.double().tolist(), labels.tolist(), strict=True):
        shares = [math.exp(value - max(row)) for value in row]
        confidence = max(shares) / sum(shares)
        place = max(0, math.ceil(confidence * bins) - 1)
        held[place].append((row.index(max(row)) == label) - confidence)
    return sum(abs(sum(gaps)) for gaps in held) / len(labels)


def reference(scores, labels, groups):
    """Every metric of one classifier, by scikit-learn where it has it."""
    predictions = scores.argmax(1)
    recalls = recall_score(labels, predictions, average=None)
    matrix = confusion_matrix(labels, predictions, labels=range(scores.shape[1]))
    many, few = groups["many"].numpy(), groups["few"].numpy()
    means = {name: recalls[mask.numpy()].mean() for name, mask in groups.items()}
    return means | {
        "std": stdev(means.values()),
        "average": balanced_accuracy_score(labels, predictions),
        "balanced_error": 1 - balanced_accuracy_score(labels, predictions),
        "accuracy": (predictions == labels).double().mean().item(),
        "macro_f1": f1_score(labels, predictions, average="macro"),
        "harmonic": harmonic_mean(recalls),
        "worst": recalls.min(),
        "calibration_error": naive_calibration(scores, labels),
        "few_as_many": matrix[few][:, many].sum() / matrix[few].sum(),
        "many_as_few": matrix[many][:, few].sum() / matrix[many].sum(),
    }


def test_spread_over_seeds_has_one_degree_of_freedom_less():
    assert Spread.over([1.0, 3.0]) == Spread(2.0, math.sqrt(2))


def test_one_seed_has_no_spread_and_an_unknown_value_no_mean():
    assert Spread.over([0.5]) == Spread(0.5, None)
    assert Spread.over([None, None]) is None
    assert Spread.over([0.5, None]) is None


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_metric_is_that_of_scikit_learn_or_of_a_loop(convention):
    scores, labels = classifier()
    norms = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) + 1
    groups = shot_groups(COUNTS, convention=convention)
    expected = [reference(part, labels, groups) for part in scores]
    for seed, entry in enumerate(expected):
        entry |= {f"norm_{g}": norms[seed][groups[g]].mean().item() for g in ("many", "few")}
    got = evaluate_scores(scores, labels, COUNTS, weight_norms=norms).metrics[convention]
    assert set(got) == set(METRICS) == set(expected[0])
    for name, spread in got.items():
        values = [float(entry[name]) for entry in expected]
        assert spread.mean == pytest.approx(mean(values), rel=1e-6), name
        assert spread.std == pytest.approx(stdev(values), rel=1e-5), name


def test_class_accuracy_is_the_mean_recall_over_seeds():
    scores, labels = classifier()
    recalls = [recall_score(labels, part.argmax(1), average=None) for part in scores]
    np.testing.assert_allclose(
        evaluate_scores(scores, labels, COUNTS).class_accuracy, np.mean(recalls, axis=0)
    )


def test_a_constant_on_all_scores_changes_nothing_and_a_temperature_only_the_calibration():
    scores, labels = classifier(seeds=1)
    plain = evaluate_scores(scores.double(), labels, COUNTS).metrics["thirds"]
    moved = evaluate_scores(scores.double() + 300, labels, COUNTS).metrics["thirds"]
    hotter = evaluate_scores(scores.double() / 7, labels, COUNTS).metrics["thirds"]
    for name, spread in plain.items():
        if spread is not None:
            assert moved[name].mean == pytest.approx(spread.mean)
            assert (hotter[name] == spread) == (name != "calibration_error")


def test_parts_of_the_images_make_no_difference(monkeypatch):
    scores, labels = classifier()
    whole = evaluate_scores(scores, labels, COUNTS)
    monkeypatch.setattr("sslgh.evaluation.scoring.CHUNK", 7 * scores.shape[0] * scores.shape[2])
    assert evaluate_scores(scores, labels, COUNTS) == whole


def test_of_equal_scores_the_first_class_is_the_answer_as_sure_as_its_share():
    found = predict([torch.zeros(1, 2, 4)])
    assert found.classes.tolist() == [[0, 0]]
    torch.testing.assert_close(found.confidence, torch.full((1, 2), 0.25, dtype=torch.float64))


def test_a_class_that_is_never_predicted_takes_no_share():
    found = predict([torch.tensor([[[0.0, 0.0, -torch.inf]]])])
    assert found.confidence.item() == 0.5


def test_half_precision_scores_are_judged_as_they_are():
    scores, labels = classifier()
    half = scores.bfloat16()
    assert evaluate_scores(half, labels, COUNTS) == evaluate_scores(half.float(), labels, COUNTS)


def test_groups_without_classes_have_no_numbers():
    scores, labels = classifier(seeds=1)
    thresholds = evaluate_scores(scores, labels, COUNTS + 100).metrics["thresholds"]
    for name in ("few", "std", "few_as_many", "many_as_few", "norm_many", "norm_few"):
        assert thresholds[name] is None
    assert thresholds["average"] is not None


def test_a_class_without_test_images_has_no_accuracy():
    scores, labels = classifier(seeds=1)
    assert (
        evaluate_scores(scores[:, labels != 2], labels[labels != 2], COUNTS).class_accuracy[2]
        is None
    )


def test_gaps_in_the_labels_change_nothing():
    scores, labels = classifier()
    norms = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) + 1
    z = torch.randn(3, len(labels), 4, generator=torch.Generator().manual_seed(2))
    place = torch.tensor([1, 2, 3, 5, 6, 8])  # of the six classes among nine
    wide = torch.full((3, len(labels), 9), -torch.inf).index_copy(2, place, scores)
    lengths = torch.full((3, 9), 77.0).index_copy(1, place, norms)
    counts = torch.zeros(9, dtype=torch.int64).index_copy(0, place, COUNTS)
    found = evaluate_scores(wide, place[labels], counts, weight_norms=lengths)
    for convention, values in evaluate_scores(
        scores, labels, COUNTS, weight_norms=norms
    ).metrics.items():
        for name, spread in values.items():
            assert found.metrics[convention][name].mean == pytest.approx(spread.mean, rel=1e-12), (
                name
            )
    assert found.class_accuracy[0] is found.class_accuracy[4] is found.class_accuracy[7] is None
    some = labels < 4  # the training images lack two classes that the test set has
    assert group_tightness(
        z[:, some], place[labels[some]], counts, test_labels=place[labels]
    ) == group_tightness(z[:, some], labels[some], COUNTS)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_counted(value):
    scores, labels = classifier(seeds=2)
    scores[1, 5, 2] = value
    scores[:, 7] = -torch.inf
    with pytest.raises(ValueError, match="but those of 2 of 300 images are not"):
        evaluate_scores(scores, labels, COUNTS)


def test_impossible_arguments_are_named():
    scores, labels = classifier(seeds=2)
    with pytest.raises(ValueError, match=r"\(S, 299, 6\) for 299 labels and 6 classes, got \(2, "):
        evaluate_scores(scores, labels[1:], COUNTS)
    with pytest.raises(ValueError, match="5 classes"):
        evaluate_scores(scores, labels, COUNTS[1:])
    with pytest.raises(ValueError, match=r"got \(300, 6\)"):
        evaluate_scores(scores[0], labels, COUNTS)
    with pytest.raises(ValueError, match=r"got \(2, 0, 6\)"):
        evaluate_scores(scores[:, :0], labels[:0], COUNTS)
    with pytest.raises(ValueError, match=r"labels must lie in 0..5, got 0..9"):
        evaluate_scores(scores, labels.where(labels > 0, 9).where(labels != 1, 0), COUNTS)
    with pytest.raises(ValueError, match=r"weight_norms must be \(2, 6\), got \(6,\)"):
        evaluate_scores(scores, labels, COUNTS, weight_norms=torch.ones(6))
