"""Weights from elsewhere are probed by one command."""

import json

import torch

from sslgh.cli import main
from sslgh.models import build_backbone

RECIPE = "{name: x, data: {source: digits, long_tail: {max_per_class: 12, imbalance: 4}}, method: {name: simclr}, "
RECIPE += "model: {backbone: resnet18, width: 0.125}, probe: [{protocol: knn}]}"


def run(*words):
    try:
        main(words)
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_file_of_weights_is_probed_with_the_architecture_and_data_of_a_recipe(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    state = build_backbone("resnet18", width=0.125).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, "w.pth")
    assert run("probe", "w.pth", "--recipe", "x.yaml", "--out", "out") == 0
    assert "w.pth" in capsys.readouterr().out
    found = [json.loads(path.read_text()) for path in (tmp_path / "out" / "w.pth").rglob("*.json")]
    assert [each["protocol"] for each in found] == ["knn"]
    torch.save({name: value + 0.1 for name, value in state.items()}, "other.pth")
    assert run("probe", "other.pth", "--recipe", "x.yaml", "--out", "out") == 0
    features = [
        {path.name for path in (tmp_path / "out" / name / "features").iterdir()}
        for name in ("w.pth", "other.pth")
    ]
    assert all(features)
    assert not features[0] & features[1]  # named by a hash of the weights


def test_a_word_that_is_neither_run_nor_weights_is_refused_with_what_may_be_given(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("probe", "nothing") == 2
    assert "a file of weights ends with .safetensors" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text(RECIPE)
    assert run("probe", "gone.pt", "--recipe", "x.yaml") == 2
    assert "is not a run directory" in capsys.readouterr().err
