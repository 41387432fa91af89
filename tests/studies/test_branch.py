"""Arms branch from one warm-up and then train as runs of their own do, to the same bits."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import Pretraining, pretrain
from sslgh.recipe import make_recipe
from sslgh.studies.branch import branch, branched_from, find_warmup, train_warmup, warmup_hash
from sslgh.studies.oracles import ORACLES, true_shares
from sslgh.studies.plan import block_recipes, load_study

ARMS = {
    "plain": None,
    "faiss": {"vertices": 10, "warmup_epochs": 2, "ramp_epochs": 1, "refresh_every": 1},
    "prototypes": {
        "vertices": 10,
        "warmup_epochs": 2,
        "ramp_epochs": 1,
        "refresh_every": 1,
        "population": "prototypes",
    },
}


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(directory / "backbone.safetensors")


def prepare(study_settings, study_file, tmp_path):
    """A study with one block of the three arms, its recipes and the checkpoint of its warm-up."""
    arms = [
        {"name": name, "about": "", "settings": {} if gh is None else {"harmonize": gh}}
        for name, gh in ARMS.items()
    ]
    block = study_settings["blocks"][1:]
    settings = study_settings | {"arms": arms, "blocks": block, "hypotheses": []}
    study = load_study(study_file(settings))
    recipes = block_recipes(study, study.blocks[0], tmp_path / "block")
    return study, recipes, train_warmup(study, recipes, init_accelerator())


def test_an_arm_trains_as_the_uninterrupted_run_of_its_recipe_does(
    study_settings, study_file, tmp_path
) -> None:
    _, recipes, checkpoint = prepare(study_settings, study_file, tmp_path)
    accelerator, trained = init_accelerator(), {}
    for name, gh in ARMS.items():
        branch(recipes[name], name, checkpoint, accelerator)
        pretrain(recipes[name], accelerator)
        settings = study_settings["recipe"] | {"name": "whole", "seed": 3, "harmonize": gh}
        data = settings["data"]
        tail = data["long_tail"] | {"class_order": {"shuffled": 1}}
        settings |= {"data": data | {"long_tail": tail}, "run_dir": str(tmp_path / f"whole-{name}")}
        whole = make_recipe(settings)
        pretrain(whole, accelerator)
        trained[name] = weights(recipes[name].directory)
        expected = weights(whole.directory)
        assert len(expected) > 50
        assert all(torch.equal(trained[name][key], value) for key, value in expected.items()), name
    assert not torch.equal(trained["plain"]["conv1.weight"], trained["faiss"]["conv1.weight"])
    assert not torch.equal(trained["plain"]["conv1.weight"], trained["prototypes"]["conv1.weight"])


def test_the_warmup_is_trained_once_and_is_found_until_an_arm_changes(
    study_settings, study_file, tmp_path
) -> None:
    study, recipes, checkpoint = prepare(study_settings, study_file, tmp_path)
    before = (checkpoint / "progress.json").stat().st_mtime_ns
    assert train_warmup(study, recipes, init_accelerator()) == checkpoint
    assert (checkpoint / "progress.json").stat().st_mtime_ns == before

    more = study.arms[1].model_copy(update={"name": "more"})
    grown = study.model_copy(update={"arms": (*study.arms, more)})
    recipes = block_recipes(grown, grown.blocks[0], tmp_path / "block")
    assert find_warmup(grown, recipes) is None  # it holds no bank of the new arm
    digest = warmup_hash(checkpoint)
    again = train_warmup(grown, recipes, init_accelerator())
    assert warmup_hash(again) == digest  # banks change no weight: old results still pair

    (again / "module.safetensors").write_bytes(b"torn")
    assert find_warmup(grown, recipes) is None


def test_a_branch_knows_its_warmup(study_settings, study_file, tmp_path) -> None:
    _, recipes, checkpoint = prepare(study_settings, study_file, tmp_path)
    assert branched_from(recipes["plain"]) is None
    branch(recipes["plain"], "plain", checkpoint, init_accelerator())
    assert branched_from(recipes["plain"]) == warmup_hash(checkpoint)
    assert not list(recipes["plain"].directory.parent.glob(".*.tmp"))


def test_balanced_sampling_shows_all_classes_alike_with_the_same_views(tiny) -> None:
    recipe, accelerator = tiny(), init_accelerator()
    images = Pretraining(recipe, accelerator, _images(recipe)).images
    stage = ORACLES["balanced-sampling"](recipe, accelerator, images)
    for epoch in (0, 3):
        shown = stage.run.sampler.epoch_indices(epoch)
        counts = np.bincount(images.labels[shown])
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == len(images)
    keys = [key for batch in stage.run.sampler.resume_at(3, 0) for key in batch]
    assert sorted(key.index for key in keys if key.epoch == 3) == sorted(shown[: len(keys)])


def _images(recipe):
    from sslgh.data import training_set  # noqa: PLC0415

    return training_set(recipe.data)


@pytest.mark.parametrize(("classes", "vertices"), [(10, 10), (10, 100), (3, 10), (7, 8)])
def test_true_shares_are_the_classes_shares_in_the_order_of_the_estimate(classes, vertices) -> None:
    draws = np.random.default_rng(classes)
    counts = torch.from_numpy(draws.integers(1, 500, classes))
    prior = torch.from_numpy(draws.dirichlet(np.ones(vertices))).float()
    shares = true_shares(counts, prior)
    assert shares.sum().item() == pytest.approx(1)
    order = prior.argsort(descending=True)
    assert bool((shares[order].diff() <= 1e-7).all())
    expected = []  # each class over its vertices, the largest classes with one more
    for rank, count in enumerate(sorted(counts.tolist(), reverse=True)):
        own = vertices // classes + (rank < vertices % classes)
        expected += [count / counts.sum().item() / own] * own
    assert sorted(shares.tolist()) == pytest.approx(sorted(expected), rel=1e-5)


def test_true_shares_need_a_vertex_per_class() -> None:
    with pytest.raises(ValueError, match="3 classes need as many vertices, got 2"):
        true_shares(torch.tensor([1, 2, 3]), torch.tensor([0.5, 0.5]))
