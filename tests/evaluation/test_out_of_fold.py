import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from sslgh.classify.selection import stratified_folds
from sslgh.data import DataError
from sslgh.evaluation import PROTOCOLS, check_probes, comparison_table, probe_backbone, read_results
from sslgh.evaluation.out_of_fold import out_of_fold
from sslgh.evaluation.probe_settings import ProbePlan
from sslgh.evaluation.scoring import Predictions
from sslgh.recipe.schema import Recipe


def pixels():
    """A backbone whose features are the pixels of a smaller image."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())


def recipe(root, *probes):
    data = {"source": "folder", "root": str(root), "size": 8, "workers": 0}
    settings = {"name": "r", "data": data, "method": {"name": "simclr"}, "probe": probes}
    return Recipe.model_validate(settings)


def write_folder(root, counts, *, signal=20.0, darkest=128.0):
    generator = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = generator.normal(darkest + signal * number, 40, (8, 8, 3)).clip(0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{i}.png")


def probed(root, directory, *probes):
    return probe_backbone(
        pixels(), recipe(root, *probes), directory=directory, accelerator=Accelerator(cpu=True)
    )


LONGTAIL = {"protocol": "longtail", "objectives": ["ce"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_folder(root, {"ape": 40, "cat": 20, "dog": 3, "eel": 1})
    return root


def test_without_a_test_set_every_image_is_predicted_by_heads_that_have_not_seen_it(
    folder, tmp_path
):
    check_probes(recipe(folder, LONGTAIL).data, recipe(folder, LONGTAIL).probe)
    (result,) = probed(folder, tmp_path, LONGTAIL)
    features = next((tmp_path / "features").iterdir())
    from safetensors.torch import load_file  # noqa: PLC0415

    rows = load_file(features)["features"].double().numpy()
    labels = np.repeat([0, 1, 2, 3], [40, 20, 3, 1])
    part = stratified_folds(torch.from_numpy(labels), 5).numpy()
    answers = np.full_like(labels, -1)
    for fold in range(5):
        seen = part != fold
        scaler = StandardScaler().fit(rows[seen])
        decay = PROTOCOLS["longtail"].heads.weight_decay
        oracle = LogisticRegression(C=1 / (seen.sum() * decay), tol=1e-9, max_iter=5000)
        oracle.fit(scaler.transform(rows[seen]), labels[seen])
        answers[~seen] = oracle.predict(scaler.transform(rows[~seen]))
    known = part >= 0
    average = result.scores["ce"].metrics["thirds"]["average"].mean
    assert average == pytest.approx(balanced_accuracy_score(labels[known], answers[known]))
    assert result.test_counts == [40, 20, 3, 0]
    assert result.train_counts == [40, 20, 3, 1]
    assert result.scores["ce"].class_accuracy[3] is None  # its only image is never held out


def test_the_table_and_the_file_call_it_an_out_of_fold_estimate(folder, tmp_path):
    (result, knn) = probed(folder, tmp_path, LONGTAIL, {"protocol": "knn", "neighbors": 3})
    table = " ".join(comparison_table([("run", [result])]).split())
    assert "no test set: out-of-fold estimate on the training labels, 5 folds" in table
    assert result.settings["out_of_fold"] == knn.settings["out_of_fold"] == 5
    assert read_results(tmp_path) == [knn, result]
    plain = replace(result, settings=result.settings | {"out_of_fold": None})
    assert comparison_table([("a", [result]), ("b", [plain])]).count("longtail v2") == 2


def test_the_earlier_version_has_a_file_of_its_own(folder, tmp_path):
    results = probed(folder, tmp_path, LONGTAIL, LONGTAIL | {"protocol": "longtail-v1"})
    files = [
        json.loads((tmp_path / "probe" / f"{name}.json").read_text())
        for name in ("longtail", "longtail-v1")
    ]
    assert [(file["protocol"], file["version"]) for file in files] == [
        ("longtail", 2),
        ("longtail", 1),
    ]
    assert [result.version for result in results] == [2, 1]


def test_labels_that_mean_nothing_are_not_learned(tmp_path):
    # On its own images the nearest neighbor is always right.
    write_folder(tmp_path / "photos", {"ape": 30, "cat": 30}, signal=0)
    (result,) = probed(tmp_path / "photos", tmp_path, {"protocol": "knn", "neighbors": 1})
    assert 0.2 < result.scores["knn"].metrics["thirds"]["average"].mean < 0.8
    # Darker and lighter than the mean that is taken off: opposite directions for the cosine.
    write_folder(tmp_path / "clear", {"ape": 30, "cat": 30}, signal=200, darkest=28)
    (result,) = probed(tmp_path / "clear", tmp_path, {"protocol": "knn", "neighbors": 1})
    assert result.scores["knn"].metrics["thirds"]["average"].mean > 0.9


def test_settings_are_chosen_without_the_images_that_are_held_out(folder, tmp_path, monkeypatch):
    choice = LONGTAIL | {"weight_decay": [1e-3, 1.0], "folds": 3}
    select, chosen_on = ProbePlan.select, []

    def counted(self, features, labels, *arguments):
        chosen_on.append(len(labels))
        return select(self, features, labels, *arguments)

    monkeypatch.setattr(ProbePlan, "select", counted)
    (result,) = probed(folder, tmp_path, choice)
    assert len(chosen_on) == 3
    assert sum(chosen_on) == 3 * 64 - 63  # each image but the only eel is held out once
    assert max(chosen_on) < 64
    assert result.settings["out_of_fold"] == 3
    assert result.chosen == {}  # each fold has its own


def test_predictions_stand_in_the_order_of_the_images():
    labels = torch.tensor([0, 1, 0, 1, 2, 0])

    def own_labels(seen, held_out):
        assert not (seen & held_out).any()
        return {"own": Predictions(labels[held_out][None], torch.ones(1, int(held_out.sum())))}

    found, known = out_of_fold(labels, 3, own_labels)
    assert known.tolist() == [True, True, True, True, False, True]
    assert torch.equal(found["own"].classes[0], labels[known])


def test_single_images_of_every_class_cannot_be_held_out(tmp_path):
    write_folder(tmp_path / "photos", {"ape": 1, "cat": 1})
    with pytest.raises(
        DataError, match=r"no test set, and .*every class has a single.*or more images per class"
    ):
        probed(tmp_path / "photos", tmp_path, LONGTAIL)
