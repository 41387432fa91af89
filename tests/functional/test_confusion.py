import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from sslgh.functional.groups import class_f1, confused_share, shot_groups

COUNTS = torch.tensor([500, 5, 300, 50, 10, 3])


def answers(classes=6, count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    guesses = torch.randint(classes, (count,), generator=generator) ** 2 % classes
    return torch.where(torch.rand(count, generator=generator) < 0.5, labels, guesses), labels


def test_f1_is_that_of_scikit_learn():
    predictions, labels = answers()
    expected = f1_score(labels, predictions, average=None)
    np.testing.assert_allclose(class_f1(predictions, labels, 6), expected)


def test_the_mean_is_the_macro_f1_of_scikit_learn_whichever_classes_are_missing():
    predictions, labels = answers()
    for asked in ([0, 1, 2], [3, 5], [4]):  # the others are predicted, but never asked
        rows = torch.isin(labels, torch.tensor(asked))
        got = class_f1(predictions[rows], labels[rows], 9).nanmean().item()
        expected = f1_score(labels[rows], predictions[rows], average="macro")
        assert got == pytest.approx(expected)


def test_a_class_that_is_asked_but_never_predicted_has_f1_0():
    f1 = class_f1(torch.tensor([0, 0]), torch.tensor([0, 1]), 3)
    assert f1[1] == 0
    assert f1[2].isnan()


@pytest.mark.parametrize(("source", "target"), [("few", "many"), ("many", "few"), ("few", "few")])
def test_confusion_of_groups_is_the_block_of_scikit_learn_s_matrix(source, target):
    predictions, labels = answers(seed=1)
    groups = shot_groups(COUNTS)
    matrix = confusion_matrix(labels, predictions, labels=range(6))
    rows = matrix[groups[source].numpy()]
    expected = rows[:, groups[target].numpy()].sum() / rows.sum()
    got = confused_share(predictions, labels, source=groups[source], target=groups[target])
    assert 0 < got == pytest.approx(expected)


def test_the_shares_of_all_groups_sum_to_one():
    predictions, labels = answers(seed=2)
    groups = shot_groups(COUNTS)
    shares = [
        confused_share(predictions, labels, source=groups["few"], target=target)
        for target in groups.values()
    ]
    assert sum(shares) == pytest.approx(1)


def test_groups_without_images_or_classes_have_no_share():
    many, few = torch.tensor([True, False]), torch.tensor([False, True])
    labels = torch.tensor([0, 0])
    assert confused_share(labels, labels, source=few, target=many) is None
    assert confused_share(labels, labels, source=many, target=few & many) is None
    assert confused_share(labels, labels, source=many, target=few) == 0


def test_predictions_of_another_length_are_refused():
    masks = {"source": torch.ones(2, dtype=torch.bool), "target": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        class_f1(torch.zeros(3), torch.zeros(2), 2)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        confused_share(torch.zeros(3), torch.zeros(2), **masks)
