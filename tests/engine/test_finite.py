import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sslgh.engine.pretraining as module
from sslgh.data import training_set
from sslgh.engine.checkpoint import Progress
from sslgh.engine.exit_codes import NotFiniteError
from sslgh.engine.launch import StopRequest, init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.trainer import gradient_norm, non_finite_reason, step_info, train_step

ONE = torch.tensor(1.0)
NAN = torch.tensor(torch.nan)


def net() -> nn.Module:
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    layers(torch.randn(8, 3)).square().sum().backward()
    return layers


def test_a_finite_step_has_no_fault() -> None:
    model = net()
    assert non_finite_reason([{"loss": ONE, "ssl": ONE}], gradient_norm(model), model) is None


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"loss": NAN, "ssl": ONE, "gh": NAN}, "the GH term is not finite"),
        ({"loss": NAN, "ssl": NAN, "embedding_norm": NAN}, "an embedding is not finite"),
        ({"loss": torch.tensor(torch.inf)}, "the loss is not finite"),
    ],
)
def test_the_cause_is_named_before_what_it_causes(part, words) -> None:
    model = net()
    assert non_finite_reason([{"loss": ONE}, part], gradient_norm(model), model) == words


def test_an_infinite_gradient_under_a_finite_loss_is_named_by_its_parameter() -> None:
    model = net()
    model[0].bias.grad[2] = torch.inf
    found = non_finite_reason([{"loss": ONE}], gradient_norm(model), model)
    assert found == "the gradient of 0.bias is not finite"


def test_numbers_that_may_be_nan_are_not_watched() -> None:
    model = net()
    assert non_finite_reason([{"loss": ONE, "online": NAN}], gradient_norm(model), model) is None


def test_the_norm_is_that_of_all_gradients_together() -> None:
    model = net()
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(gradient_norm(model), flat.norm())


def poison(monkeypatch, *calls: int, measured: int = 2) -> None:
    """Views full of nan at some steps, counted from 1, after those by which a run measures its memory."""
    original, count = module.augment_views, iter(range(1 - measured, 1000))

    def views(*arguments, **named):
        rendered = original(*arguments, **named)
        return [view * torch.nan for view in rendered] if next(count) in calls else rendered

    monkeypatch.setattr(module, "augment_views", views)


def events(directory, kind: str):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.mark.parametrize("name", ["simclr", "moco-v2", "byol", "nnclr", "swav", "dino", "sdclr"])
def test_a_poisoned_step_is_skipped_and_nothing_of_it_stays(tiny, monkeypatch, name) -> None:
    poison(monkeypatch, 6, 7)
    queue = ["method.queue=64"] if name in ("moco-v2", "nnclr") else []
    recipe = tiny(
        f"method.name={name}", "train.not_finite=skip", "train.keep_last=9", *queue, gh=True
    )
    directory = pretrain(recipe, init_accelerator())
    told = [(line["step"], line["text"]) for line in events(directory, "skipped")]
    assert told == [(6, "an embedding is not finite"), (7, "an embedding is not finite")]
    assert len(events(directory, "train")) == 4 * 4 - 2
    files = list((directory / "checkpoints").glob("*/*.safetensors"))
    assert len(files) == 2 * 4
    for file in files:
        assert all(value.isfinite().all() for value in load_file(file).values())


def test_a_skipped_step_leaves_weights_queues_and_memory_as_they_were(tiny, monkeypatch) -> None:
    recipe = tiny("method={name: moco-v2, queue: 64}", "train.not_finite=skip", gh=True)
    stage = module.Pretraining(recipe, init_accelerator(), training_set(recipe.data))
    batches, step = stage.batches(Progress(), None), step_info(stage.run, Progress())
    good = train_step(stage, batches, step, StopRequest())
    assert good.skipped is None
    assert stage.outputs == []
    modules = (stage.method, stage.aux)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in modules]
    poison(monkeypatch, 1, measured=0)
    bad = train_step(stage, batches, step, StopRequest())
    assert bad.skipped == "an embedding is not finite"
    assert stage.outputs == []
    for part, held in zip(modules, before, strict=True):
        different = [k for k, v in part.state_dict().items() if not torch.equal(v, held[k])]
        assert different == []


def test_by_default_the_run_stops_and_names_the_step(tiny, monkeypatch) -> None:
    poison(monkeypatch, 6)
    recipe = tiny()
    with pytest.raises(NotFiniteError, match=r"an embedding is not finite in step 6 \(epoch 1\)"):
        pretrain(recipe, init_accelerator())
    assert [path.name for path in (recipe.directory / "checkpoints").iterdir()] == [
        "step-000000004"
    ]


def test_a_run_that_only_skips_stops(tiny, monkeypatch) -> None:
    poison(monkeypatch, *range(3, 1000))
    with pytest.raises(NotFiniteError, match="as in the 9 steps before it"):
        pretrain(tiny("train.not_finite=skip"), init_accelerator())


def test_skips_that_are_not_in_a_row_do_not_stop_a_run(tiny, monkeypatch) -> None:
    poison(monkeypatch, *range(1, 1000, 2))
    directory = pretrain(tiny("train.not_finite=skip", "train.epochs=6"), init_accelerator())
    assert len(events(directory, "skipped")) == 12
