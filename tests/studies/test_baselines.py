"""`sslgh baselines`: every row on the same images, by the same heads."""

import json

import pytest
import torch
from torch import nn

from sslgh.cli import main
from sslgh.models import build_backbone, save_backbone
from sslgh.models.last_two import LastTwo
from sslgh.recipe import load_recipe
from sslgh.studies import baselines as study
from sslgh.studies.baselines import baselines

RECIPE = """
name: x
data: {source: digits, size: 8, long_tail: {max_per_class: 12, imbalance: 4}, test_per_class: 5}
model: {backbone: resnet18, width: 0.125, projector: {hidden: 16, out: 8}}
method: {name: simclr}
optim: {warmup_epochs: 0}
train: {epochs: 1, batch_size: 16}
probe: [{protocol: longtail, objectives: [ce, la]}]
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe, and weights of a run next to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(RECIPE)
    torch.manual_seed(5)
    (tmp_path / "w").mkdir()
    card = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 8}
    save_backbone(build_backbone("resnet18", width=0.125), tmp_path / "w", card)
    return tmp_path / "x.yaml"


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_all_rows_stand_in_one_table_with_their_time_and_trained_parameters(recipe, capsys) -> None:
    assert run("baselines", recipe, "--weights", "w") == 0
    printed = capsys.readouterr().out
    names = ["random weights", "given weights", "given weights, last two layers", "own run"]
    names += ["own run from weights", "own run, norm+blocks"]
    for objective in ("ce", "la"):
        rows = printed.split(f"\n{objective} ")[1].splitlines()[: len(names)]
        assert [
            next(n for n in sorted(names, key=len, reverse=True) if n in row) for row in rows
        ] == names
    assert "labels, norm+blocks" in printed
    costs = printed.split("trained parameters")[1]
    whole = sum(p.numel() for p in build_backbone("resnet18", width=0.125).parameters())
    assert f"{whole:,}" in costs
    trained = {line.split("  ")[0]: line.split() for line in costs.splitlines()[1:]}
    assert trained["random weights"][-3:-1] == ["0", "0"]
    adapted = int(trained["own run, norm+blocks"][-3].replace(",", ""))
    assert 0 < adapted < whole
    found = {path.parent.parent.name: path for path in recipe.parent.rglob("probe/longtail.json")}
    tested = {json.loads(path.read_text())["data"]["fingerprint"] for path in found.values()}
    assert len(tested) == 1
    assert set(found) == {
        "x",
        "random-weights",
        "given-weights",
        "own-run-from-weights",
        "own-run-norm+blocks",
    }
    first = capsys.readouterr()
    assert run("baselines", recipe, "--weights", "w") == 0  # nothing is trained again
    assert "training is done already" in capsys.readouterr().out
    assert first.out == ""


def test_frozen_rows_train_nothing(recipe, capsys) -> None:
    assert run("baselines", recipe, "--weights", "w", "--frozen") == 0
    assert "own run" not in capsys.readouterr().out
    assert not (recipe.parent / "runs" / "x").exists()


def test_random_weights_are_those_of_the_seed(recipe, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        study, "probe_backbone", lambda backbone, *_, **__: seen.append(backbone.conv1.weight) or []
    )
    for seed in (0, 0, 1):
        row = next(iter(baselines(load_recipe(recipe, [f"seed={seed}"]), "w")))
        assert row.name == "random weights"
        study._measured(row)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_recipe_that_begins_with_weights_has_them_as_given_and_is_drawn_for_its_twin(
    recipe,
) -> None:
    found = {row.name: row for row in baselines(load_recipe(recipe, ["model={init: w}"]))}
    assert found["given weights"].recipe.model.init == "w"
    own = found["own run"].recipe
    assert (own.model.init, own.model.backbone, own.model.width) == (None, "resnet18", 0.125)
    assert own.directory != load_recipe(recipe).directory


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--weights", "nowhere"], "is not a run directory"),
        (["method=null", "finetune={}"], "expected one recipe with method:"),
        (["data={source: folder, root: x}"], "x"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(recipe, words, sentence, capsys) -> None:
    assert run("baselines", recipe, *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "width", "layer"), [("resnet18", 32, "layer3"), ("vit_tiny", 192, "blocks.10")]
)
def test_features_of_the_last_two_layers_are_both_of_them(name, width, layer) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=8, width=0.125 if name == "resnet18" else 1.0).eval()
    seen = []
    backbone.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = LastTwo(backbone)(images)
        last = backbone(images)
    mean = seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0].mean(1)
    assert torch.equal(found, torch.cat([mean, last], dim=1))
    assert mean.shape == (2, width)
    assert len(backbone.get_submodule(layer)._forward_hooks) == 1  # its own is gone


def test_a_network_without_known_layers_has_no_last_two() -> None:
    with pytest.raises(ValueError, match="probe features last-two: the order of the layers"):
        LastTwo(nn.Sequential(nn.Flatten()))
