import pytest
import torch

from sslgh.data import DataError
from sslgh.evaluation import check_probes, probe_features
from sslgh.evaluation.checks import check_features, check_probe
from sslgh.recipe import RecipeError
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Probe

DATA = Data(source="digits", long_tail={"imbalance": 20, "max_per_class": 100})


def check(**settings):
    check_probe(Probe(**settings), num_classes=3, images=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "knn", "tau": 2}, "probe knn does not read tau, but only neighbors"),
        ({"protocol": "knn", "test_prior": "balanced"}, "knn does not read test_prior"),
        ({"protocol": "gh-50shot", "lr": 0.1}, "gh-50shot does not read lr, but only seeds"),
        ({"protocol": "gh-50shot", "objectives": ["la"]}, "does not read objectives"),
        ({"protocol": "longtail", "neighbors": 5}, "longtail does not read neighbors"),
    ],
)
def test_settings_that_a_protocol_does_not_read_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        check(**settings)


@pytest.mark.parametrize("protocol", ["knn", "gh-50shot", "longtail"])
def test_defaults_that_a_resolved_recipe_writes_out_are_accepted(protocol):
    check(**Probe(protocol=protocol).model_dump())


def test_the_objective_of_the_paper_may_be_said():
    check(protocol="gh-50shot", objectives=["ce"], seeds=2)


def test_objectives_that_cannot_be_adjusted_are_named_before_anything_trains(tmp_path):
    probe = Probe(protocol="longtail", objectives=("la", "ldam", "ncm"), test_prior="balanced")
    message = "test_prior cannot be reached by ldam, ncm, whose scores.*or use ce, balanced"
    with pytest.raises(RecipeError, match=message):
        check_probes(DATA, [probe])
    features, labels = torch.eye(6), torch.arange(6) % 3
    with pytest.raises(RecipeError, match=message):
        # The first probe would have run.
        probe_features(
            features,
            labels,
            features,
            labels,
            [Probe(protocol="knn", neighbors=2), probe],
            directory=tmp_path,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.5), "test_prior has 2 class shares, but there are 3 classes"),
        ((0.5, 0.5, 0.5), r"test_prior: class shares must .*sum to 1, got a sum of 1.5"),
    ],
)
def test_shares_that_are_none_are_refused(shares, message):
    with pytest.raises(RecipeError, match=message):
        check(protocol="longtail", objectives=["ce"], test_prior=shares)


def test_a_prior_of_the_right_length_is_accepted_by_the_classes_of_the_data():
    probe = Probe(protocol="longtail", objectives=("ce", "la"), test_prior=(0.1,) * 10)
    check_probes(DATA, [probe])


def test_too_few_images_for_the_neighbors_are_refused():
    check(protocol="knn", neighbors=30)
    with pytest.raises(DataError, match="31 neighbors to vote, but there are 30"):
        check(protocol="knn", neighbors=31)


GOOD = (torch.eye(4), torch.tensor([0, 1, 1, 2]))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ((torch.ones(2, 3), GOOD[1][:2]), "training features are 4 wide and test features 3"),
        ((GOOD[0] * torch.nan, GOOD[1]), "4 of 4 rows of the test features hold nan or inf"),
        ((GOOD[0], GOOD[1] - 1), r"test labels must count from 0, got -1..1"),
        ((GOOD[0], GOOD[1] + 3), r"training labels are 0..2, test labels 3..5; number"),
        ((GOOD[0], GOOD[1].float()), "test labels must be integers, got torch.float32"),
        ((GOOD[0], GOOD[1][:3]), r"\(N, F\) and \(N,\), N >= 1, got \(4, 4\) and \(3,\)"),
        ((GOOD[0][:0], GOOD[1][:0]), r"got \(0, 4\) and \(0,\)"),
    ],
)
def test_what_is_wrong_with_features_is_named(test, message):
    check_features(GOOD, GOOD)
    with pytest.raises(ValueError, match=message):
        check_features(GOOD, test)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_names": ["a", "b"]}, "labels reach 2, but there are 2 classes"),
        ({"class_counts": torch.tensor([5, 5])}, "labels reach 2, but there are 2 classes"),
        (
            {"class_names": ["a", "b", "c"], "class_counts": torch.ones(4, dtype=torch.int64)},
            "class_counts are for 4 classes, class_names for 3",
        ),
    ],
)
def test_classes_that_disagree_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        probe_features(*GOOD, *GOOD, [Probe(protocol="knn")], directory=tmp_path, **given)


def test_names_may_go_beyond_the_labels(tmp_path):
    (result,) = probe_features(
        *GOOD,
        *GOOD,
        [Probe(protocol="knn", neighbors=1)],
        directory=tmp_path,
        class_names="abcd",
    )
    assert result.group_counts == [1, 2, 1, 0]
    assert result.scores["knn"].class_accuracy == [1, 1, 1, None]
