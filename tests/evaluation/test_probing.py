import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from sslgh.data import DataError
from sslgh.evaluation import (
    PROTOCOLS,
    cached_features,
    check_probes,
    probe_backbone,
    probe_features,
    read_results,
)
from sslgh.evaluation.features import check_features
from sslgh.evaluation.protocols import labeled_images, training_images
from sslgh.evaluation.results import METRICS, write_results
from sslgh.functional.calibration import calibration_error
from sslgh.functional.groups import class_tightness
from sslgh.recipe.schema import Probe, Recipe

DIGITS = {"source": "digits", "long_tail": {"imbalance": 20, "max_per_class": 100}}


def recipe(*probes, data=None):
    return Recipe.model_validate(
        {"name": "r", "data": data or DIGITS, "method": {"name": "simclr"}, "probe": probes}
    )


def random_convolution():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 48, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
    )


def blobs(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.randn(len(counts), 6, generator=torch.Generator().manual_seed(7))
    return centers[labels] + 0.8 * torch.randn(len(labels), 6, generator=generator), labels


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits under every protocol that fits them, with a random convolution as backbone."""
    folder = tmp_path_factory.mktemp("run")
    probes = ({"protocol": "longtail", "seeds": 2}, {"protocol": "knn"}, {"protocol": "gh-50shot"})
    results = probe_backbone(
        random_convolution(), recipe(*probes), directory=folder, accelerator=Accelerator(cpu=True)
    )
    return folder, {result.protocol: result for result in results}


def test_adjustment_lifts_the_balanced_accuracy_of_digits(digits):
    scores = digits[1]["longtail"].scores
    average = {name: entry.metrics["thirds"]["average"].mean for name, entry in scores.items()}
    assert list(average) == ["ce", "la", "la-posthoc", "elm"]
    assert average["ce"] < min(average["la"], average["la-posthoc"], average["elm"])


def test_groups_are_those_of_pretraining_whatever_the_heads_had(digits):
    for result in digits[1].values():
        assert result.group_counts[0] == 100
        assert result.group_counts[-1] == 5
    assert digits[1]["gh-50shot"].train_counts == [50] * 10
    assert digits[1]["longtail"].train_counts == digits[1]["longtail"].group_counts
    thresholds = digits[1]["gh-50shot"].scores["ce"].metrics["thresholds"]
    assert thresholds["many"] is None
    assert thresholds["few"] is not None


def test_the_files_say_what_the_results_say(digits):
    folder, results = digits
    assert {result.protocol: result for result in read_results(folder)} == results
    content = json.loads((folder / "probe" / "longtail.json").read_text())
    assert content["settings"]["heads"]["tolerance"] == 1e-6
    assert content["settings"]["embedding"]["elm"]["weight"] == 0.35
    assert content["settings"]["embedding"]["elm"]["temperature"] == 0.1
    assert content["settings"]["tau"] == 1.0
    assert content["version"] == 2
    assert content["std_ddof"] == 1


def test_spread_is_over_seeds_and_absent_for_one(digits):
    several, optimum = (digits[1]["longtail"].scores[name] for name in ("elm", "la"))
    assert several.metrics["thirds"]["average"].std is not None
    assert optimum.metrics["thirds"]["average"].std is None  # the same for every seed
    assert digits[1]["gh-50shot"].scores["ce"].metrics["thirds"]["few"].std is None


def test_the_embedding_layer_s_tightness_stands_next_to_that_of_the_features(digits):
    result = digits[1]["longtail"]
    assert set(result.tightness) == {"train", "test"}
    assert set(result.tightness["test"]["thirds"]) == {"many", "medium", "few", "average"}
    assert result.scores["la"].tightness is None
    assert result.scores["elm"].tightness["test"]["thirds"]["few"] > 0


def test_the_second_probe_of_a_protocol_gets_a_number(tmp_path, digits):
    knn = digits[1]["knn"]
    write_results([knn, digits[1]["longtail"], knn], tmp_path)
    names = sorted(path.name for path in (tmp_path / "probe").iterdir())
    assert names == ["knn-2.json", "knn.json", "longtail.json"]


def test_a_file_without_the_newer_metrics_asks_for_another_probe(tmp_path, digits):
    write_results([digits[1]["knn"]], tmp_path)
    path = tmp_path / "probe" / "knn.json"
    path.write_text(path.read_text().replace("macro_f1", "f1"))
    with pytest.raises(ValueError, match=r"knn.json .*macro_f1.*probe the run again"):
        read_results(tmp_path)


def test_every_metric_of_every_objective_is_known(digits):
    for result in digits[1].values():
        for name, scores in result.scores.items():
            known = {key for key, spread in scores.metrics["thirds"].items() if spread is not None}
            weights = set() if name == "knn" else {"norm_many", "norm_few"}
            assert known == {key for key in METRICS if "norm" not in key} | weights
    assert digits[1]["knn"].scores["knn"].metrics["thirds"]["calibration_error"].mean < 0.5


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "knn.json").write_text('{"protocol": "knn"}')
    with pytest.raises(ValueError, match=r"knn\.json is not the result of a probe"):
        read_results(tmp_path)


def test_neighbors_of_features_agree_with_scikit_learn(tmp_path):
    (train, labels), (test, truth) = blobs([60, 30, 10], 0), blobs([400] * 3, 1)
    probe = Probe(protocol="knn", neighbors=40)
    (result,) = probe_features(train, labels, test, truth, [probe], directory=tmp_path)
    models = [
        KNeighborsClassifier(40, metric="cosine", weights=weights).fit(train, labels)
        for weights in (lambda distance: np.exp((1 - distance) / 0.1), "uniform")
    ]
    weighted, equal = (model.predict(test) for model in models)
    average = result.scores["knn"].metrics["thirds"]["average"].mean
    assert average == pytest.approx(balanced_accuracy_score(truth, weighted))
    assert average != pytest.approx(balanced_accuracy_score(truth, equal))
    confidence = torch.from_numpy(models[0].predict_proba(test).max(1))
    error = calibration_error(confidence, torch.from_numpy(weighted) == truth).item()
    got = result.scores["knn"].metrics["thirds"]["calibration_error"].mean
    assert got == pytest.approx(error, abs=1e-4)


def test_the_paper_s_protocols_train_on_weak_views_and_the_others_on_plain_ones(digits):
    folder, _ = digits
    images = labeled_images(recipe().data)
    files = set((folder / "features").iterdir())
    assert len(files) == 3  # the test set, the long-tailed images, the shots
    expected = [
        (images.test, False),
        (images.longtail, False),
        (training_images(PROTOCOLS["gh-50shot"], images), True),
    ]
    for part, weak in expected:
        cached_features(
            random_convolution(),
            part,
            recipe().data,
            size=16,
            weak=weak,
            directory=folder,
            accelerator=Accelerator(cpu=True),
        )
    assert set((folder / "features").iterdir()) == files


def test_tightness_of_a_group_is_the_mean_of_its_classes(tmp_path):
    (train, labels), (test, truth) = blobs([200, 150, 30, 10], 0), blobs([40] * 4, 1)
    probe = Probe(protocol="knn")
    (result,) = probe_features(train, labels, test, truth, [probe], directory=tmp_path)
    expected = class_tightness(test, truth, 4)
    got = result.tightness["test"]["thresholds"]
    assert got["many"] == pytest.approx(expected[:2].mean().item())
    assert got["few"] == pytest.approx(expected[3].item())
    assert got["average"] == pytest.approx(expected.mean().item())


def test_labels_that_count_from_one_change_no_number(tmp_path):
    (train, labels), (test, truth) = blobs([200, 150, 30, 10], 0), blobs([40] * 4, 1)
    probes = [
        Probe(protocol="knn"),
        Probe(protocol="longtail", objectives=("ce",), seeds=1),
    ]
    first, second = (
        probe_features(train, labels + k, test, truth + k, probes, directory=tmp_path)
        for k in (0, 1)
    )
    for one, other in zip(first, second, strict=True):
        assert other.tightness == one.tightness
    for group, spread in second[0].scores["knn"].metrics["thirds"].items():
        expected = first[0].scores["knn"].metrics["thirds"][group]
        assert (spread and spread.mean) == pytest.approx(expected and expected.mean), group


def test_given_counts_decide_the_groups(tmp_path):
    (train, labels), (test, truth) = blobs([30, 30, 30], 0), blobs([20] * 3, 1)
    (result,) = probe_features(
        train,
        labels,
        test,
        truth,
        [Probe(protocol="knn")],
        directory=tmp_path,
        class_counts=torch.tensor([5, 50, 500]),
    )
    accuracy = result.scores["knn"].class_accuracy
    groups = result.scores["knn"].metrics["thresholds"]
    assert [groups[name].mean for name in ("few", "medium", "many")] == pytest.approx(accuracy)


def test_a_test_class_that_was_never_trained_counts_as_missed(tmp_path):
    (train, labels), (test, truth) = blobs([30, 30], 0), blobs([20, 20, 20], 1)
    probe = Probe(protocol="longtail", objectives=("la",))
    (result,) = probe_features(train, labels, test, truth, [probe], directory=tmp_path)
    assert result.scores["la"].class_accuracy[2] == 0


def test_probes_are_refused_before_any_feature_is_extracted(tmp_path):
    probes = ({"protocol": "knn"}, {"protocol": "gh-100shot"})
    data = DIGITS | {"test_per_class": 100}
    data = data | {"long_tail": {"imbalance": 5, "max_per_class": 50}}
    with pytest.raises(DataError, match="gh-100shot needs 100 training images"):
        check_probes(recipe(data=data).data, recipe(*probes).probe)
    with pytest.raises(DataError, match="gh-100shot needs 100 training images"):
        probe_backbone(
            random_convolution(),
            recipe(*probes, data=data),
            directory=tmp_path,
            accelerator=Accelerator(cpu=True),
        )
    assert not list(tmp_path.iterdir())


def test_more_neighbors_than_images_are_refused():
    probes = recipe({"protocol": "knn", "neighbors": 10_000}).probe
    with pytest.raises(DataError, match="10000 neighbors to vote, but there are 335"):
        check_probes(recipe().data, probes)


def on_processes(folder):
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # What a launcher sets; the process group itself is already there.
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launcher |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    try:
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == world
        probes = recipe({"protocol": "knn"}, {"protocol": "longtail", "objectives": ["la"]})
        settings = {"directory": Path(folder), "accelerator": accelerator}
        # The second time every process must find the main one's cache.
        return [
            [asdict(r) for r in probe_backbone(random_convolution(), probes, **settings)]
            for _ in range(2)
        ]
    finally:
        for name in launcher:
            del os.environ[name]


def test_every_process_gets_the_results_of_the_main_one(two_processes, digits, tmp_path):
    answers = two_processes(on_processes, str(tmp_path))
    assert len(answers) == 2
    assert answers[0] == answers[1]
    first, second = answers[0]
    assert first == second
    alone = digits[1]["knn"].scores["knn"].class_accuracy
    assert first[0]["scores"]["knn"]["class_accuracy"] == pytest.approx(alone)


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
