import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sslgh.data import training_set
from sslgh.distributed import weighted_mean
from sslgh.engine import pretraining
from sslgh.engine.checkpoint import Progress
from sslgh.engine.exit_codes import NotFiniteError
from sslgh.engine.launch import StopRequest, init_accelerator
from sslgh.engine.pretraining import Pretraining, pretrain
from sslgh.engine.trainer import step_info, train_step
from sslgh.methods import Method, MethodOutput
from sslgh.models import load_backbone
from sslgh.recipe import RecipeError, recipe_text


def lines(directory, kind="train"):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def weights(directory):
    return load_file(directory / "backbone.safetensors")


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("gh", [False, True])
@pytest.mark.parametrize("name", ["simclr", "simsiam"])  # the others: test_recipes_train.py
def test_a_run_learns_and_leaves_a_complete_directory(tiny, name, gh) -> None:
    recipe = tiny(f"method.name={name}", "train.epochs=6", gh=gh)
    directory = pretrain(recipe, init_accelerator())
    names = {path.name for path in directory.iterdir()}
    expected = {"recipe.yaml", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert expected | {"backbone.safetensors", "backbone.json", "status.json"} <= names
    assert json.loads((directory / "status.json").read_text())["state"] == "done"
    losses = [line["ssl"] for line in lines(directory)]
    assert len(losses) == 6 * 4
    if (
        name == "simclr" and not gh
    ):  # test_recipes_train.py has them all, with settings of their own
        assert sum(losses[-4:]) < sum(losses[:4])
    assert all(0.1 < line["embedding_std"] < 1.05 for line in lines(directory))
    backbone, card = load_backbone(directory)
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, backbone.num_features)
    assert card["image_size"] == 8
    if gh:
        terms = [line["gh"] for line in lines(directory)]
        assert max(terms[:4]) == 0 < min(terms[4:])  # GH begins in epoch 1
        refreshes = lines(directory, "refresh")
        assert [line["epoch"] for line in refreshes] == [1, 2, 3, 4, 5]
        assert all(0 <= line["prior_error"] <= 1 and "nmi" in line for line in refreshes)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_does_not(tiny, tmp_path) -> None:
    runs = [
        pretrain(tiny(f"run_dir={tmp_path}/{n}", f"seed={seed}", gh=True), init_accelerator())
        for n, seed in enumerate((0, 0, 1))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize("population", ["faiss", "prototypes"])
def test_a_killed_run_goes_on_and_ends_with_the_bits_of_an_unbroken_one(
    tiny, tmp_path, population
) -> None:
    overrides = ("train.epochs=8", f"harmonize.population={population}")
    unbroken = pretrain(tiny(*overrides, f"run_dir={tmp_path}/whole", gh=True), init_accelerator())
    recipe = tiny(*overrides, gh=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(recipe))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "sslgh.pretrain", str(file)]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    checkpoints = recipe.directory / "checkpoints"
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) < 2:
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (recipe.directory / "backbone.safetensors").exists()
    resumed = pretrain(recipe, init_accelerator())
    assert same(weights(resumed), weights(unbroken))
    assert [line["step"] for line in lines(resumed)] == list(range(1, 8 * 4 + 1))


def test_sigterm_saves_in_the_middle_of_an_epoch_and_the_run_goes_on_to_the_same_bits(
    tiny, tmp_path, stopped_at
) -> None:
    unbroken = pretrain(tiny(f"run_dir={tmp_path}/whole", gh=True), init_accelerator())
    recipe = tiny(gh=True)
    with stopped_at(13):
        pretrain(recipe, init_accelerator())
    assert same(weights(pretrain(recipe, init_accelerator())), weights(unbroken))


def test_weights_that_are_not_finite_are_never_saved(tiny, monkeypatch) -> None:
    from sslgh.engine import trainer as module  # noqa: PLC0415

    original = module.train_step

    def step_and_poison(stage, batches, step, stop):
        result = original(stage, batches, step, stop)
        if step.global_step == 6:  # an infinite gradient under a finite loss
            next(stage.run.module.parameters()).data.fill_(torch.inf)
        return result

    monkeypatch.setattr(module, "train_step", step_and_poison)
    recipe = tiny("train.log_every=1000", "train.checkpoint_every=2")
    with pytest.raises(NotFiniteError):
        pretrain(recipe, init_accelerator())
    assert not list((recipe.directory / "checkpoints").glob("step-*"))


def test_a_signal_to_the_whole_group_with_loader_workers_still_saves(tiny, tmp_path) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = tiny("data.workers=2", "train.epochs=500")
    file.write_text(recipe_text(recipe))
    command = [sys.executable, "-m", "sslgh.pretrain", str(file)]
    child = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((recipe.directory / "checkpoints").glob("step-*")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGTERM)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 75, told
    assert "run the same command to resume" in told
    assert json.loads((recipe.directory / "status.json").read_text())["state"] == "stopped"


def test_a_run_that_is_done_is_not_done_again(tiny, capsys) -> None:
    directory = pretrain(tiny(), init_accelerator())
    before = (directory / "backbone.safetensors").stat().st_mtime_ns
    pretrain(tiny(), init_accelerator())
    assert (directory / "backbone.safetensors").stat().st_mtime_ns == before
    assert "done already" in capsys.readouterr().out


class SquaredBrightness(Method):
    """A loss that is a sum over samples and knows no batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.embedding_dim = 4

    def forward(self, views, weights=None):  # noqa: D102
        z1, z2 = (self.backbone(view.mean((2, 3))) for view in views)
        per_sample = (z1 + z2).square().sum(1)
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), z1.detach())


def after_one_step(recipe, accumulation: int, batch_size: int, monkeypatch) -> torch.Tensor:
    torch.manual_seed(0)
    train = {
        "accumulation": accumulation,
        "batch_size": batch_size,
        "allow_fewer_negatives": True,
    }
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
    monkeypatch.setattr(pretraining, "build_method", lambda *_: SquaredBrightness())
    images = dataclasses.replace(training_set(recipe.data), labels=None, class_names=())
    stage = Pretraining(recipe, init_accelerator(), images)
    step = step_info(stage.run, Progress())._replace(lr=0.1, should_log=True)
    train_step(stage, stage.batches(Progress(), None), step, StopRequest())
    return stage.method.backbone.weight.detach()


@pytest.mark.parametrize("batch_size", [32, 9])  # 9: parts of 3, 2, 2, 2 images
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(
    tiny, batch_size, monkeypatch
) -> None:
    whole = after_one_step(tiny(), 1, batch_size, monkeypatch)
    found = after_one_step(tiny(), 4, batch_size, monkeypatch)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tiny) -> None:
    recipe = tiny("optim.lr=1e30", "optim.warmup_epochs=0")
    with pytest.raises(NotFiniteError, match=r"an embedding is not finite in step 2 \(epoch 0\)"):
        pretrain(recipe, init_accelerator())
    for path in (recipe.directory / "checkpoints").glob("step-*"):
        assert all(t.isfinite().all() for t in load_file(path / "module.safetensors").values())


def test_bf16_and_workers_run_and_do_not_change_the_images(tiny, tmp_path) -> None:
    runs = [
        pretrain(tiny("train.epochs=1", f"run_dir={tmp_path}/{n}", *extra), init_accelerator())
        for n, extra in enumerate(
            [("data.workers=0",), ("data.workers=2",), ("train.precision=bf16",)]
        )
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    losses = [lines(run)[0]["loss"] for run in runs]
    assert losses[2] != losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("harmonize={vertices: 5000}", "harmonize.vertices is 5000, but there are only"),
        ("method={name: simclear}", "method.name: unknown key 'simclear'; did you mean 'simclr'"),
        ("method={name: simclr, temprature: 1}", "did you mean 'temperature'"),
        ("model.backbone=resnet99", "unknown backbone"),
        ("train.processes=2", "train.processes is 2, but 1 started"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence_and_leaves_no_run_behind(
    tiny, override, message
) -> None:
    recipe = tiny(override)
    with pytest.raises(ValueError, match=message):
        pretrain(recipe, init_accelerator())
    assert not (recipe.directory / "recipe.yaml").exists()


def test_a_directory_of_another_recipe_is_not_touched(tiny) -> None:
    directory = pretrain(tiny("train.epochs=1"), init_accelerator())
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    with pytest.raises(RecipeError, match="another run"):
        pretrain(tiny("train.epochs=1", "optim.lr=0.3"), init_accelerator())
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before


def test_a_run_that_starts_from_another_saves_the_backbone_of_that_one(tiny, tmp_path) -> None:
    first = pretrain(tiny("train.epochs=1", f"run_dir={tmp_path}/first"), init_accelerator())
    settings = "model={init: " + str(first) + ", projector: {hidden: 32, out: 16}}"
    second = pretrain(tiny(settings, "train.epochs=1"), init_accelerator())
    backbone, card = load_backbone(second)
    assert card["width"] == load_backbone(first)[1]["width"] == 0.125
    assert backbone.num_features == 64
