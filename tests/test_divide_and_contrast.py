"""The script trains a base, its experts and a student on digits."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from sslgh.data import training_set
from sslgh.models import load_backbone
from sslgh.recipe import load_recipe

SCRIPT = Path(__file__).parents[1] / "scripts" / "studies" / "divide_and_contrast.py"
STAGES = ("base", "expert-1", "expert-2", "student")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(recipe_file) -> list[str]:
    return [str(recipe_file), "--clusters", "2", "train.epochs=1"]


def weights(root: Path) -> dict[str, bytes]:
    return {name: (root / name / "backbone.safetensors").read_bytes() for name in STAGES}


def test_base_experts_and_student_are_trained_once_and_the_student_by_all(
    script, command, recipe_file, tmp_path, capsys
) -> None:
    root = tmp_path / "run"
    assert script.main(command) == 0
    said = capsys.readouterr().out
    assert f"what it brought: sslgh probe {root}/base {root}/student" in said

    # The clusters share all images out, by the centroids that the student is gated by.
    files = [root / "clusters" / f"expert-{k}.txt" for k in (1, 2)]
    positions = [[int(line) for line in file.read_text().split()] for file in files]
    assert sorted(positions[0] + positions[1]) == list(range(118))
    features = load_file(next((root / "base" / "features").iterdir()))["features"].numpy()
    nearest = (features @ np.load(root / "clusters" / "centroids.npy").T).argmax(1)
    assert [np.flatnonzero(nearest == k).tolist() for k in (0, 1)] == positions

    whole = training_set(load_recipe(recipe_file).data)
    for k in (1, 2):
        expert = load_recipe(root / f"expert-{k}" / "recipe.yaml")
        names = [whole.names[i] for i in positions[k - 1]]
        assert list(training_set(expert.data).names) == names
        assert expert.method.name == "simclr"
    student = load_recipe(root / "student" / "recipe.yaml")
    assert len(training_set(student.data)) == 118
    assert student.method.arguments["teachers"] == [str(root / name) for name in STAGES[:3]]
    assert student.method.arguments["centroids"] == str(root / "clusters" / "centroids.npy")
    assert load_backbone(root / "student")[1]["method"] == "distil"

    # Given again it repeats nothing; what is missing is made up for.
    trained = weights(root)
    assert script.main(command) == 0
    assert capsys.readouterr().out.count("training is done already") == 4
    for path in sorted((root / "student").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert script.main(command) == 0
    assert capsys.readouterr().out.count("training is done already") == 3
    assert weights(root) == trained

    assert script.main([*command, "--clusters", "3"]) == 2
    assert "holds 2 clusters, not 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--clusters", "1"], "--clusters is 1, but images are divided into 2 or more"),
        (["data.subset=some.txt"], "data.subset says what an expert is trained on"),
        (["train.epoch=2"], "unknown key 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_is_trained(
    script, command, tmp_path, capsys, words, sentence
) -> None:
    assert script.main([*command, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_directory_of_another_run_is_left_alone(script, command, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump({"name": "other"}))
    assert script.main(command) == 2
    assert "holds a run of one stage; choose another run_dir" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_a_cluster_too_small_for_an_expert_is_named(script, command, tmp_path, capsys) -> None:
    assert script.main([*command, "--clusters", "110"]) == 2
    assert "of 110 clusters holds" in capsys.readouterr().err
    assert not (tmp_path / "run" / "clusters").exists()
