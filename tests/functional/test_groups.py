import itertools
import math
from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from torch.nn.functional import normalize

from sslgh.functional.groups import class_accuracy, class_tightness, group_metrics, shot_groups

CIFAR100_LT = torch.tensor([int(500 * 0.01 ** (c / 99)) for c in range(100)])
CIFAR10_LT = torch.tensor([int(5000 * 0.01 ** (c / 9)) for c in range(10)])


def sizes(groups):
    return [int(groups[name].sum()) for name in ("many", "medium", "few")]


def test_class_accuracy_is_the_recall_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(7, (300,), generator=generator) for _ in range(2))
    expected = recall_score(labels, predictions, average=None)
    np.testing.assert_allclose(class_accuracy(predictions, labels, 7), expected)


def test_the_thresholds_give_the_published_groups_of_cifar():
    assert sizes(shot_groups(CIFAR100_LT)) == [35, 35, 30]
    assert sizes(shot_groups(CIFAR10_LT)) == [8, 2, 0]


def test_the_ends_of_medium_belong_to_medium():
    groups = shot_groups(torch.tensor([101, 100, 20, 19, 0]))
    assert groups["many"].tolist() == [True, False, False, False, False]
    assert groups["medium"].tolist() == [False, True, True, False, False]
    assert groups["few"].tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("classes", "expected"), [(100, [34, 33, 33]), (10, [4, 3, 3]), (11, [4, 4, 3]), (2, [1, 1, 0])]
)
def test_thirds_differ_by_one_class_at_most(classes, expected):
    assert sizes(shot_groups(torch.arange(classes), convention="thirds")) == expected


def test_thirds_go_by_size_and_equal_sizes_by_label():
    groups = shot_groups(torch.tensor([5, 9, 5, 5, 7, 5]), convention="thirds")
    assert groups["many"].nonzero().flatten().tolist() == [1, 4]
    assert groups["medium"].nonzero().flatten().tolist() == [0, 2]
    assert groups["few"].nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("convention", ["thresholds", "thirds"])
def test_every_class_is_in_exactly_one_group(convention):
    counts = torch.randint(0, 200, (57,), generator=torch.Generator().manual_seed(1))
    groups = shot_groups(counts, convention=convention)
    assert torch.stack(list(groups.values())).sum(0).eq(1).all()


@pytest.mark.parametrize("convention", ["thresholds", "thirds"])
def test_a_gap_in_the_labels_is_in_no_group_and_moves_none(convention):
    counts, test_counts = torch.tensor([500, 60, 0, 30, 10, 4]), torch.tensor([9, 9, 9, 9, 0, 9])
    place = torch.tensor([1, 2, 4, 5, 7, 9])
    wide, wide_test = (
        torch.zeros(11, dtype=torch.int64).index_copy(0, place, part)
        for part in (counts, test_counts)
    )
    groups = shot_groups(counts, convention=convention, test_counts=test_counts)
    found = shot_groups(wide, convention=convention, test_counts=wide_test)
    for name, mask in groups.items():
        assert found[name].nonzero().flatten().tolist() == place[mask].tolist()


@pytest.mark.parametrize("convention", ["thresholds", "thirds"])
def test_without_gaps_the_test_images_change_no_group(convention):
    counts = torch.randint(0, 200, (57,), generator=torch.Generator().manual_seed(1))
    groups = shot_groups(counts, convention=convention)
    found = shot_groups(counts, convention=convention, test_counts=torch.ones_like(counts))
    assert all(torch.equal(found[name], mask) for name, mask in groups.items())


def test_a_class_with_test_images_alone_is_few_shot():
    groups = shot_groups(torch.tensor([500, 0, 0]), test_counts=torch.tensor([9, 9, 0]))
    assert groups["few"].tolist() == [False, True, False]


def test_average_and_accuracy_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    labels = torch.cat([torch.arange(5), torch.randint(5, (195,), generator=generator) ** 2 % 5])
    predictions = torch.where(torch.rand(200, generator=generator) < 0.6, labels, labels.flip(0))
    result = group_metrics(
        class_accuracy(predictions, labels, 5),
        shot_groups(torch.tensor([300, 150, 60, 10, 5])),
        test_counts=torch.bincount(labels, minlength=5),
    )
    assert result["average"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert result["balanced_error"] == pytest.approx(
        1 - balanced_accuracy_score(labels, predictions)
    )
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predictions))


def test_groups_and_std_agree_with_a_hand_calculation():
    accuracy = torch.tensor([0.9, 0.7, 0.6, 0.2, 0.4, 0.0])
    groups = shot_groups(torch.tensor([500, 400, 50, 5, 4, 3]))
    result = group_metrics(accuracy, groups, test_counts=torch.full((6,), 10))
    assert [result[name] for name in ("many", "medium", "few")] == pytest.approx([0.8, 0.6, 0.2])
    # Deviations from 8/15 are 4/15, 1/15 and -5/15: squares sum to 42/225, over 2 degrees of freedom.
    assert result["std"] == pytest.approx(math.sqrt(42 / 225 / 2))
    assert result["average"] == pytest.approx(2.8 / 6)


def test_harmonic_and_worst_agree_with_the_standard_library():
    accuracy = torch.tensor([0.9, 0.5, 0.1, float("nan")], dtype=torch.float64)
    result = group_metrics(
        accuracy, shot_groups(torch.tensor([500, 50, 5, 5])), test_counts=torch.tensor([9, 9, 9, 0])
    )
    assert result["harmonic"] == pytest.approx(harmonic_mean([0.9, 0.5, 0.1]))
    assert result["worst"] == 0.1


def test_one_class_that_is_never_right_makes_the_harmonic_mean_0():
    accuracy = torch.tensor([1.0, 1.0, 0.0])
    result = group_metrics(accuracy, {}, test_counts=torch.full((3,), 5))
    assert result["harmonic"] == result["worst"] == 0
    assert result["average"] == pytest.approx(2 / 3)


def test_without_test_images_nothing_is_known():
    result = group_metrics(torch.full((2,), torch.nan), {}, test_counts=torch.ones(2))
    assert result["harmonic"] is result["worst"] is result["average"] is None


def test_an_empty_group_has_no_mean_and_leaves_no_std():
    result = group_metrics(
        torch.full((10,), 0.5), shot_groups(CIFAR10_LT), test_counts=torch.full((10,), 100)
    )
    assert result["few"] is None
    assert result["std"] is None
    assert result["many"] == result["average"] == 0.5


def test_a_class_without_test_images_counts_nowhere():
    accuracy = class_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 2)
    result = group_metrics(
        accuracy, shot_groups(torch.tensor([200, 5])), test_counts=torch.tensor([3, 0])
    )
    assert result["few"] is None
    assert result["average"] == result["accuracy"] == result["many"] == pytest.approx(2 / 3)


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match=r"share a shape \(N,\), got \(3,\) and \(2,\)"):
        class_accuracy(torch.zeros(3), torch.zeros(2), 2)
    with pytest.raises(ValueError, match="'thresholds' or 'thirds', got 'halves'"):
        shot_groups(torch.ones(3), convention="halves")
    with pytest.raises(ValueError, match=r"counts must be \(C,\)"):
        shot_groups(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"counts and test_counts .* got \(3,\) and \(2,\)"):
        shot_groups(torch.ones(3), test_counts=torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        group_metrics(torch.ones(3), {}, test_counts=torch.ones(2))


def test_tightness_is_the_mean_squared_distance_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (40,), generator=generator)
    for label, got in enumerate(class_tightness(z, labels, 4)):
        rows = normalize(z[labels == label])
        pairs = [(a - b).square().sum().item() for a, b in itertools.combinations(rows, 2)]
        assert got.item() == pytest.approx(sum(pairs) / len(pairs))


def test_tightness_does_not_flatter_small_classes():
    generator = torch.Generator().manual_seed(1)
    center = normalize(torch.randn(8, generator=generator), dim=0)
    z = center + 0.3 * torch.randn(20_000, 8, generator=generator)
    fives = class_tightness(z, torch.arange(20_000) // 5, 4000).mean()
    whole = class_tightness(z, torch.zeros(20_000, dtype=torch.int64), 1)[0]
    assert fives.item() == pytest.approx(whole.item(), rel=0.02)


def test_tightness_ignores_the_length_of_the_embeddings():
    z, labels = torch.randn(12, 4), torch.arange(12) % 3
    scale = torch.rand(12, 1) + 0.1
    torch.testing.assert_close(class_tightness(z, labels, 3), class_tightness(scale * z, labels, 3))


def test_tight_classes_keep_their_digits():
    z = torch.tensor([[1.0, 1e-4], [1.0, -1e-4]])
    assert class_tightness(z, torch.tensor([0, 0]), 1).item() == pytest.approx(4e-8, rel=1e-3)


def test_classes_of_one_image_have_no_tightness():
    assert class_tightness(torch.randn(1, 3), torch.tensor([1]), 3).isnan().all()


def test_half_precision_loses_nothing():
    z, labels = torch.randn(30, 6).bfloat16(), torch.arange(30) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = class_tightness(z, labels, 2)
    assert torch.equal(inside, class_tightness(z.float(), labels, 2))


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(4,\)"):
        class_tightness(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), 2)
