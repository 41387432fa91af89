"""Supervised training end to end, on real digits."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sslgh.classify import OBJECTIVES
from sslgh.data import DataError, SupervisedBatch, augment_views, normalize, training_set
from sslgh.engine.build import build_network
from sslgh.engine.checkpoint import Progress
from sslgh.engine.finetuning import Finetuning, _tau, dry_run_finetuning, finetune
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.trainer import step_info
from sslgh.evaluation import evaluate_run, read_results
from sslgh.functional import (
    embedding_margin,
    logit_adjusted_cross_entropy,
    rebalanced_contrastive,
)
from sslgh.recipe import RecipeError


@pytest.fixture
def supervised(tiny, tmp_path):
    """``supervised("finetune.objective=bcl")``: the tiny recipe, with labels."""

    def make(*overrides: str):
        defaults = ("method=null", "finetune.policy=none", f"run_dir={tmp_path}/supervised")
        return tiny(*defaults, *overrides)

    return make


def weights(recipe) -> dict[str, torch.Tensor]:
    found = load_file(recipe.directory / "backbone.safetensors")
    return found | load_file(recipe.directory / "classifier.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_is_judged_and_is_not_trained_twice(supervised) -> None:
    recipe = supervised("train.epochs=12", "finetune.objective=la")
    finetune(recipe, init_accelerator())
    (result,) = evaluate_run(recipe, init_accelerator())
    average = result.scores["la"].metrics["thresholds"]["average"]
    assert average.mean > 0.4  # ten classes; 30 images down to 3
    assert read_results(recipe.directory) == [result]
    assert result.train_counts == training_set(recipe.data).class_counts.tolist()
    assert result.settings["objective"] == "la"
    card = json.loads((recipe.directory / "backbone.json").read_text())
    assert card["method"] == "finetune la"
    before = (recipe.directory / "backbone.safetensors").stat().st_mtime_ns
    finetune(recipe, init_accelerator())
    assert evaluate_run(recipe, init_accelerator()) == [result]
    assert (recipe.directory / "backbone.safetensors").stat().st_mtime_ns == before


def test_cross_entropy_is_also_judged_adjusted_afterwards(supervised) -> None:
    recipe = supervised("train.epochs=1", "finetune.objective=ce")
    finetune(recipe, init_accelerator())
    (result,) = evaluate_run(recipe, init_accelerator())
    assert set(result.scores) == {"ce", "la-posthoc"}
    balanced = supervised(
        "train.epochs=1",
        "finetune.objective=ce",
        "finetune.sampling=class-balanced",
        f"run_dir={recipe.directory}-balanced",
    )
    finetune(balanced, init_accelerator())
    (result,) = evaluate_run(balanced, init_accelerator())
    assert set(result.scores) == {"ce"}  # the draws were adjusted already


@pytest.mark.parametrize("objective", ["elm", "rcl"])
def test_a_stopped_run_goes_on_and_ends_with_the_bits_of_an_unbroken_one(
    supervised, tmp_path, stopped_at, objective
) -> None:
    overrides = (
        f"finetune.objective={objective}",
        "finetune.ema=0.9",
        "finetune.sampling=class-balanced",
    )
    whole = supervised(*overrides, f"run_dir={tmp_path}/whole")
    finetune(whole, init_accelerator())
    broken = supervised(*overrides)
    with stopped_at(7):
        finetune(broken, init_accelerator())
    finetune(broken, init_accelerator())
    assert same(weights(broken), weights(whole))


def first_part(recipe, epoch: int = 0):
    """Metrics of the first micro-batch of a run, and what they are made of."""
    stage = Finetuning(recipe, init_accelerator(), training_set(recipe.data))
    images = stage.images
    generator = np.random.default_rng(0)
    rows = generator.choice(len(images), 16, replace=False)
    view = torch.from_numpy(generator.integers(0, 256, (16, 3, 8, 8), dtype=np.uint8))
    crops = torch.from_numpy(generator.integers(0, 256, (16, 2, 3, 8, 8), dtype=np.uint8))
    from sslgh.data.augment import NUM_PARAMS  # noqa: PLC0415

    params = torch.from_numpy(generator.random((16, 2, NUM_PARAMS), dtype=np.float32))
    target, index = torch.from_numpy(images.labels[rows]), torch.from_numpy(rows)
    batch = SupervisedBatch(view, crops, params, target, index, torch.full_like(index, -1))
    values = stage.loss(batch, step_info(stage.run, Progress())._replace(epoch=epoch))
    counts = torch.from_numpy(images.class_counts)
    return values, stage.network, batch, counts / counts.sum()


def test_the_loss_is_that_of_the_objective_and_its_term(supervised) -> None:
    values, network, (view, _, _, target, *_), prior = first_part(
        supervised("finetune.objective=elm", "finetune.temperature=0.2", "finetune.tau=0.7")
    )
    features = network.backbone(normalize(view))
    logit = logit_adjusted_cross_entropy(network.classifier(features), target, prior, tau=0.7)
    term = embedding_margin(
        features, target, prior, tau=0.7, temperature=0.2, proxies=network.classifier.weight
    )
    expected = logit.mean() + OBJECTIVES["elm"].embedding_weight * term.mean()
    torch.testing.assert_close(values["loss"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values["embedding"], term.mean(), rtol=1e-4, atol=1e-5)


def test_a_contrast_has_two_views_of_its_own_and_prototypes_behind_a_head(supervised) -> None:
    recipe = supervised(
        "finetune.objective=rcl",
        "finetune.classifier=cosine",
        "finetune.gamma=0.5",
        "finetune.scale=1.5",
        "finetune.logit_weight=2",
        "finetune.embedding_weight=0.6",
        "model.batch_norm=local",
    )
    values, network, (view, crops, params, target, *_), prior = first_part(recipe)
    network.train()
    views = [normalize(view), *augment_views(crops, params, recipe.data.augment)]
    local, one, two = network.backbone(torch.cat(views)).chunk(3)
    z = torch.stack(network.projector(torch.cat([one, two])).chunk(2), dim=1)
    prototypes = network.prototype_head(network.classifier.weight)
    term = rebalanced_contrastive(
        z, target, prototypes, prior, temperature=0.1, gamma=0.5, scale=1.5
    ).mean()
    logit = logit_adjusted_cross_entropy(network.classifier(local), target, prior).mean()
    torch.testing.assert_close(values["loss"], 2 * logit + 0.6 * term, rtol=1e-4, atol=1e-4)


def test_deferred_weights_begin_when_they_should(supervised) -> None:
    words = ("finetune.objective=ldam-drw", "train.epochs=10")
    for start, more in ((8, ()), (5, ("finetune.deferred_epoch=5",))):
        recipe = supervised(*words, *more)
        epochs = (start - 2, start - 1, start, start + 1)
        losses = [first_part(recipe, epoch)[0]["loss"].item() for epoch in epochs]
        assert losses[0] == losses[1] != losses[2] == losses[3]


def test_the_largest_margin_of_ldam_is_half_a_cosine(supervised) -> None:
    settings = supervised("finetune.objective=ldam", "finetune.classifier=cosine").finetune
    prior, target = torch.tensor([15 / 16, 1 / 16]), torch.tensor([1, 0])
    tau = _tau(settings, 1 / 16)
    loss = OBJECTIVES["ldam"].loss(torch.zeros(2, 2), target, prior, tau=tau)
    margins = torch.tensor([15.0, 15.0 * (1 / 15) ** 0.25])
    torch.testing.assert_close(loss, F.softplus(margins))


@pytest.mark.parametrize("sampling", ["class-balanced", "progressive"])
def test_the_prior_is_that_of_the_draws(supervised, sampling) -> None:
    recipe = supervised("finetune.objective=la", f"finetune.sampling={sampling}", "train.epochs=10")
    values, network, (view, _, _, target, *_), prior = first_part(recipe, epoch=5)
    drawn = torch.full_like(prior, 0.1)
    if sampling == "progressive":
        drawn = (prior + drawn) / 2
    logits = network.classifier(network.backbone(normalize(view)))
    expected = logit_adjusted_cross_entropy(logits, target, drawn).mean()
    torch.testing.assert_close(values["loss"], expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_stays_and_its_classifier_learns(supervised, tiny, tmp_path) -> None:
    pretrained = pretrain(tiny(f"run_dir={tmp_path}/pretrained"), init_accelerator())
    recipe = supervised(f"model.init={pretrained}", "model.width=0.125", "finetune.freeze=true")
    start = build_network(recipe, 8, 10).classifier.weight.clone()
    finetune(recipe, init_accelerator())
    before = load_file(pretrained / "backbone.safetensors")
    assert same(before, load_file(recipe.directory / "backbone.safetensors"))
    assert not torch.equal(weights(recipe)["weight"], start)
    conflict = supervised(f"model.init={pretrained}", "model.width=0.5")
    with pytest.raises(RecipeError, match=r"model.width is 0.5, but .* holds 0.125"):
        build_network(conflict, 8, 10)
    with pytest.raises(RecipeError, match="is not a run directory"):
        build_network(supervised("model.init=nowhere"), 8, 10)


def test_a_moving_average_is_what_is_judged(supervised) -> None:
    recipe = supervised("finetune.ema=0.5", "train.epochs=1")
    stage = Finetuning(recipe, init_accelerator(), training_set(recipe.data))
    network, average = stage.network, stage.ema
    assert stage.evaluated_network is average.module is not network
    first = network.classifier.weight.detach().clone()
    average.update_parameters(network)  # the first update copies
    with torch.no_grad():
        network.classifier.weight += 1
    average.update_parameters(network)
    torch.testing.assert_close(average.module.classifier.weight.detach(), first + 0.5)
    assert stage.run.aux_state is average


def test_recipes_that_cannot_be_trained_are_refused(supervised, tiny, tmp_path) -> None:
    with pytest.raises(RecipeError, match="sslgh pretrain"):
        finetune(tiny(), init_accelerator())
    with pytest.raises(RecipeError, match="sslgh finetune"):
        pretrain(supervised(), init_accelerator())
    with pytest.raises(
        RecipeError, match=r"finetune\.objective: unknown key 'crt'; known keys: balanced,"
    ):
        finetune(supervised("finetune.objective=crt"), init_accelerator())
    with pytest.raises(RecipeError, match="finetune: gamma is not read by objective la; leave it"):
        finetune(supervised("finetune.gamma=3"), init_accelerator())
    with pytest.raises(RecipeError, match=r"set train\.allow_fewer_negatives: true"):
        finetune(supervised("finetune.objective=elm", "train.accumulation=2"), init_accelerator())
    with pytest.raises(RecipeError, match=r"freeze needs model\.init"):
        supervised("finetune.freeze=true")
    with pytest.raises(RecipeError, match="one of method: and finetune:"):
        supervised("method={name: simclr}")
    folder = tmp_path / "flat"
    folder.mkdir()
    np.savez(folder / "train.npz", images=np.zeros((40, 8, 8, 3), dtype=np.uint8))
    recipe = supervised("data={source: arrays, root: " + str(folder) + "}")
    with pytest.raises(DataError, match="finetuning needs labels"):
        finetune(recipe, init_accelerator())


def test_a_dry_run_takes_a_step_and_writes_nothing(supervised, capsys) -> None:
    recipe = supervised("finetune.objective=bcl")
    dry_run_finetuning(recipe, init_accelerator())
    assert "dry run, nothing written" in capsys.readouterr().out
    assert not recipe.directory.exists()
