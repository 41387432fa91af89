"""Prediction by a finetuned run, and selection from what ``sslgh look`` has written."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from sslgh.data.image_set import ImageSet
from sslgh.data.run_record import record_text
from sslgh.explore.classifier_source import load_photo_classifier
from sslgh.explore.look import look_folder
from sslgh.models.serialization import save_classifier
from sslgh.recipe import make_recipe
from sslgh.recipe.run_recipe import run_text


@pytest.fixture
def finetuned(run, tmp_path):
    """Makes the directory of a run that was finetuned by an objective on 6 and 2 images."""

    def make(objective):
        folder = tmp_path / f"finetuned-{objective}"
        shutil.copytree(run, folder)
        torch.manual_seed(0)
        save_classifier(nn.Linear(64, 2), folder, ["ape", "bee"])
        data = {"source": "folder", "root": str(tmp_path)}
        settings = {"name": "r", "data": data, "finetune": {"objective": objective}}
        recipe = make_recipe(settings | {"run_dir": str(folder)})
        (folder / "recipe.yaml").write_text(run_text(recipe))
        files = tuple(tmp_path / f"{n}.png" for n in range(8))
        for file in files:
            file.write_bytes(b"")
        names = tuple(file.name for file in files)
        images = ImageSet(files, np.array([0] * 6 + [1] * 2), ("ape", "bee"), names)
        (folder / "images.json").write_text(record_text(images))
        return folder

    return make


@pytest.mark.parametrize(("objective", "default"), [("ce", [0.75, 0.25]), ("la", [0.5, 0.5])])
def test_a_finetuned_run_knows_for_which_prior_it_decides(finetuned, objective, default) -> None:
    model, classifier = load_photo_classifier(str(finetuned(objective)))

    assert classifier.default.tolist() == pytest.approx(default)
    assert classifier.trained.tolist() == [0.75, 0.25]
    features = torch.randn(5, 64)
    assert torch.allclose(
        classifier.posterior(features).float(), model.classifier(features).softmax(1), atol=1e-5
    )


def test_predict_takes_a_finetuned_run_and_its_prior(
    call, read, finetuned, photos, tmp_path, capsys
) -> None:
    run = finetuned("ce")
    prior = tmp_path / "prior.csv"
    prior.write_text("ape;0\nbee;1\n")

    assert call("predict", run, photos, "-o", tmp_path / "a", "--prior", prior) == 0

    rows = read(tmp_path / "a" / "predictions.csv")
    assert len(rows) == 6
    assert {(row["kind"], row["probability"]) for row in rows} == {("bee", "1.0000")}
    assert {row["unlike_anything_seen"] for row in rows} == {""}
    assert "broken, left out: 1" in capsys.readouterr().out


def test_a_prior_for_scores_of_which_nothing_is_known_is_refused(
    call, finetuned, photos, tmp_path, capsys
) -> None:
    run = finetuned("focal")

    assert call("predict", run, photos, "-o", tmp_path / "a", "--prior", "balanced") == 2
    assert "--prior cannot be used with" in capsys.readouterr().err
    assert call("predict", run, photos, "-o", tmp_path / "a") == 0


def test_select_takes_groups_and_copies_from_a_look(
    call, read, photos, model, draw, tmp_path
) -> None:
    draw(photos / "z" / "copy.png", 1)  # of a/1.png
    out = tmp_path / "out"
    look_folder(photos, out, model, workers=0, budget=4)

    assert call("select", out, "--budget", 50, "-o", tmp_path / "list.csv") == 0

    rows = read(tmp_path / "list.csv")
    groups = {row["file"]: row["group"] for row in read(out / "photos.csv")}
    assert len(rows) == 6
    assert len({"a/1.png", "z/copy.png"} & {row["file"] for row in rows}) == 1
    assert all(row["group"] == groups[row["file"]] for row in rows)
