from collections.abc import Callable
from typing import Any

import pytest
import torch

from sslgh.classify import Head, select_heads
from sslgh.data import DataError
from sslgh.evaluation import PROTOCOLS, check_probes, probe_features, read_results
from sslgh.evaluation.probe_settings import plan_probe, plan_probes
from sslgh.recipe import RecipeError
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Probe

COUNTS = (200, 80, 25, 8)
Run = Callable[..., Any]

DATA = Data(source="digits", long_tail={"imbalance": 20, "max_per_class": 100})


def blobs(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), 6, generator=torch.Generator().manual_seed(7))
    return centers[labels] + torch.randn(len(labels), 6, generator=generator), labels


@pytest.fixture
def run(tmp_path) -> Run:
    """``run(tau=(0, 1))``: a longtail probe of blobs, of which the test labels may be poisoned."""
    train, labels = blobs(COUNTS, 0)
    test, truth = blobs([50] * 4, 1)

    def probe(*, protocol="longtail", poison=0, noise=0.0, **settings):
        probes = [Probe(protocol=protocol, **settings)]
        given = test + noise * torch.randn(test.shape, generator=torch.Generator().manual_seed(2))
        return probe_features(
            train, labels, given, (truth + poison) % 4, probes, directory=tmp_path
        )[0]

    return probe


def test_every_objective_gets_the_combinations_of_what_it_reads():
    names = ("ce", "la", "la-posthoc", "ncm")
    probe = Probe(
        protocol="longtail-v1", objectives=names, tau=(0.5, 2), lr=(0.1, 0.01), weight_decay=(0, 1)
    )
    found = plan_probe(probe).heads
    assert {name: len(set(heads)) for name, heads in found.items()} == {
        "ce": 4,
        "la": 8,
        "la-posthoc": 8,
        "ncm": 1,
    }
    assert Head("la", 2.0, 0.01, 0.0) in found["la"]
    assert {head.tau for head in found["ce"]} == {1.0}


def test_without_choices_there_is_one_head_with_the_protocol_s_numbers():
    for name, count in (("longtail", 4), ("gh-50shot", 1), ("knn", 0)):
        found = plan_probe(Probe(protocol=name)).heads
        assert len(found) == count
        assert all(heads == [Head(key)] for key, heads in found.items())


def test_the_choice_does_not_see_the_test_set(run):
    settings = {"objectives": ("ce", "la-posthoc"), "lr": (1e-6, 1e-2), "tau": (0.0, 0.5)}
    settings["protocol"] = "longtail-v1"
    clean = run(**settings, folds=3)
    # Judged by turned labels and ruined features the head that hardly learns would win; chosen on the test images,
    # whose classes are equally large, every tau would be as good as the first.
    poisoned = run(**settings, folds=3, poison=1, noise=1e3)
    assert clean.chosen == poisoned.chosen
    assert {entry["lr"] for entry in clean.chosen.values()} == {1e-2}
    assert clean.chosen["la-posthoc"]["tau"] == 0.5
    for name, scores in clean.scores.items():
        assert scores.class_accuracy != poisoned.scores[name].class_accuracy


def test_what_is_chosen_is_what_is_trained_with_all_seeds_at_once(run):
    settings = {"protocol": "longtail-v1", "objectives": ("ce", "la"), "weight_decay": 0.1}
    several = run(**settings, lr=(1e-6, 1e-2), folds=2, seeds=2)
    alone = run(**settings, lr=1e-2, seeds=2)
    for name, scores in several.scores.items():
        assert scores.class_accuracy == pytest.approx(alone.scores[name].class_accuracy)
        assert scores.metrics["thirds"]["average"].std is not None
    assert alone.chosen == {}
    assert several.chosen["la"] == {"tau": 1.0, "lr": 1e-2, "weight_decay": 0.1}
    assert several.chosen["ce"] == {"tau": None, "lr": 1e-2, "weight_decay": 0.1}


def test_the_choice_is_that_of_select_heads_on_as_many_folds(run):
    settings = {"objectives": ("la-posthoc",), "tau": (0.25, 0.5, 0.75, 1.0)}
    protocol = PROTOCOLS["longtail"]
    found = plan_probe(Probe(protocol="longtail", **settings)).heads
    features, labels = blobs(COUNTS, 0)
    taus = []
    for folds in (4, 5):
        best = select_heads(
            features,
            labels,
            num_classes=4,
            candidates=found,
            training=protocol.heads,
            folds=folds,
        )
        taus.append(run(**settings, folds=folds).chosen["la-posthoc"]["tau"])
        assert taus[-1] == best["la-posthoc"].tau
    assert taus[0] != taus[1]  # or this would not see the folds


def test_only_what_has_a_choice_is_chosen_and_the_file_says_so(run, tmp_path):
    result = run(objectives=("ce", "la-posthoc"), tau=(0, 1), folds=2)
    assert list(result.chosen) == ["la-posthoc"]
    decay = PROTOCOLS["longtail"].heads.weight_decay
    assert result.chosen["la-posthoc"] == {
        "tau": result.chosen["la-posthoc"]["tau"],
        "lr": None,
        "weight_decay": decay,
    }
    assert result.settings["tau"] == [0.0, 1.0]
    assert result.settings["folds"] == 2
    assert "lr" not in result.settings
    assert read_results(tmp_path) == [result]


def test_cross_entropy_for_equal_shares_is_the_post_hoc_adjustment(run):
    adjusted = run(objectives=("ce",), test_prior="balanced").scores["ce"]
    post_hoc = run(objectives=("la-posthoc",)).scores["la-posthoc"]
    assert adjusted.class_accuracy == post_hoc.class_accuracy
    errors = [s.metrics["thirds"]["calibration_error"].mean for s in (adjusted, post_hoc)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    plain = run(objectives=("ce",)).scores["ce"]
    assert plain.class_accuracy != adjusted.class_accuracy


def test_the_shares_of_training_are_what_cross_entropy_decides_for_already(run):
    accuracy = [
        run(objectives=("ce", "la"), test_prior=prior).scores
        for prior in ("objective", "train", "balanced")
    ]
    objective, train, balanced = accuracy
    assert objective["ce"].class_accuracy == train["ce"].class_accuracy
    assert objective["la"].class_accuracy == balanced["la"].class_accuracy
    assert train["la"].class_accuracy[0] > balanced["la"].class_accuracy[0]


def test_a_class_of_share_0_is_not_predicted(run):
    shares = (0.5, 0.25, 0.25, 0.0)
    result = run(objectives=("ce", "la"), test_prior=shares)
    assert result.settings["test_prior"] == list(shares)
    for scores in result.scores.values():
        assert scores.class_accuracy[3] == 0
        assert scores.class_accuracy[2] > 0


def test_the_prior_of_a_probe_is_a_vector_of_the_classes():
    prior = torch.tensor([0.7, 0.2, 0.1])

    def expected(value):
        probe = Probe(protocol="longtail", objectives=("ce",), test_prior=value)
        return plan_probe(probe).expected_prior(prior)

    assert expected("objective") is None
    assert torch.equal(expected("train"), prior)
    torch.testing.assert_close(expected("balanced"), torch.full((3,), 1 / 3))
    torch.testing.assert_close(expected((0.0, 0.4, 0.6)), torch.tensor([0.0, 0.4, 0.6]))


def check(**settings):
    plan_probe(Probe(**settings)).check_data(num_classes=3, num_images=30)


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
def test_defaults_that_a_full_config_writes_out_are_accepted(protocol):
    check(**Probe(protocol=protocol).model_dump())


def test_the_objective_of_the_paper_may_be_named():
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


def test_an_unknown_name_is_refused_with_its_key_and_the_nearest_known_one():
    probes = [Probe(protocol="knn"), Probe(protocol="longtail", objectives=("la", "la-post"))]
    message = r"probe\.1\.objectives\.1: unknown key 'la-post'; did you mean 'la-posthoc'\?"
    with pytest.raises(RecipeError, match=message):
        plan_probes(probes)
    with pytest.raises(RecipeError, match=r"probe\.0\.protocol: unknown key 'longtial'; did you"):
        plan_probes([Probe(protocol="longtial")])
