"""`sslgh baselines`: every row on the same images, by the same heads."""

import json

import pytest
import timm
import torch
from torch import nn

from sslgh.cli import main
from sslgh.engine.build import build_method
from sslgh.models import build_backbone, save_backbone
from sslgh.models.last_two import LastTwo
from sslgh.models.library_backbones import with_features
from sslgh.recipe import load_recipe
from sslgh.recipe.schema import Probe
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


def test_a_file_and_the_word_pretrained_are_of_the_recipes_own_backbone(recipe) -> None:
    torch.save(build_backbone("resnet18", width=0.125).state_dict(), "x.pt")
    loaded = load_recipe(recipe, ["model.init_least=0.95"])
    rows = {row.name: row.recipe.model for row in baselines(loaded, "x.pt")}
    given = rows["given weights"]
    assert (given.width, given.init_least, given.init) == (0.125, 0.95, "x.pt")
    assert "own run, norm+blocks" in rows
    loaded = load_recipe(recipe, ["model={backbone: timm:resnet10t, init: pretrained}"])
    rows = [next(found) for found in [baselines(loaded)]]
    assert (rows[0].recipe.model.backbone, rows[0].recipe.model.init) == ("timm:resnet10t", None)


def test_a_row_that_fails_leaves_the_others(recipe, monkeypatch, capsys) -> None:
    measured = study._measured

    def fail(row):
        if row.name == "random weights":
            raise ValueError("no room")
        return measured(row)

    monkeypatch.setattr(study, "_measured", fail)
    assert run("baselines", recipe, "--weights", "w", "--frozen") == 2
    printed = capsys.readouterr()
    assert "no room" in printed.err
    assert "given weights, last two layers" in printed.out
    assert "random weights" not in printed.out


def test_weights_of_unknown_layers_are_probed_on_their_features_alone() -> None:
    probes = (Probe(protocol="longtail"), Probe(protocol="longtail", features="last-two"))
    assert study._fitting(probes, nn.Sequential(nn.Flatten())) == probes[:1]
    assert study._fitting(probes, build_backbone("resnet18", width=0.125)) == probes


def test_trained_parameters_of_an_adaptformer_are_those_of_the_run(recipe, monkeypatch) -> None:
    monkeypatch.setattr(study, "pretrain", lambda *_: None)
    monkeypatch.setattr(study, "load_backbone", lambda *_: (None, {}))
    monkeypatch.setattr(study, "probe_backbone", lambda *_, **__: [])
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", image_size=8)
    torch.save(net.state_dict(), "vit.pt")
    words = ["model={backbone: vit_tiny, init: vit.pt, adapter: {name: adaptformer}}"]
    loaded = load_recipe(recipe, words)
    _, cost = study._measured(study.Baseline("x", loaded, trains=True))
    method = build_method(loaded, 8)
    assert cost.parameters == sum(
        p.numel() for p in method.backbone.parameters() if p.requires_grad
    )


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


def tiny(name):
    """A drawn network of a library, as small as its code allows, its side, and its layer before the last."""
    if name == "swin":
        options = {"img_size": 16, "patch_size": 2, "window_size": 2, "embed_dim": 8}
        net = timm.models.SwinTransformer(depths=(1, 2), num_heads=(1, 2), num_classes=0, **options)
        return net, 16, "layers.1.blocks.0", (1, 2)
    if name == "edgenext":
        options = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 2), "heads": (2, 2, 2, 2)}
        net = timm.models.EdgeNeXt(num_classes=0, global_block_counts=(0, 0, 0, 0), **options)
        return net, 64, "stages.3.blocks.0", (2, 3)
    options = {"num_levels": 2, "embed_dims": (8, 16), "num_heads": (1, 2), "depths": (1, 2)}
    net = timm.models.Nest(img_size=16, patch_size=2, num_classes=0, **options)
    return net, 16, "levels.1.transformer_encoder.0", (1, 2)


@pytest.mark.parametrize("name", ["swin", "edgenext", "nest"])
def test_the_layer_before_the_last_is_a_block_of_the_last_stage(name) -> None:
    torch.manual_seed(0)
    net, side, layer, places = tiny(name)
    backbone, seen = with_features(net, side).eval(), []
    backbone.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        found = LastTwo(backbone)(torch.randn(2, 3, side, side))
    width = found.shape[1] - backbone.num_features
    torch.testing.assert_close(found[:, :width], seen[0].mean(places))


def test_a_layer_that_gives_no_tensor_is_refused_in_a_sentence() -> None:
    network = LastTwo(build_backbone("resnet18", width=0.125))
    network.backbone.extra = nn.Linear(1, 1)  # never called
    network.before_last = ["extra"]
    with pytest.raises(ValueError, match="the layer before the last of ScaledResNet, gave no"):
        network(torch.zeros(2, 3, 8, 8))


def test_a_network_without_known_layers_has_no_last_two() -> None:
    with pytest.raises(ValueError, match="probe features last-two: the order of the layers"):
        LastTwo(nn.Sequential(nn.Flatten()))
