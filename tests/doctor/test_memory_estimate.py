"""The size of a run is what the run then has."""

import pytest
import torch

from sslgh.data import input_size, training_set
from sslgh.doctor.memory_estimate import run_size
from sslgh.engine.build import build_method
from sslgh.engine.monitor.aux_state import AuxiliaryState
from sslgh.engine.optim import build_optimizer

WORDS = ["optim.name=sgd", "optim.name=adamw"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("gh", [False, True])
def test_a_checkpoint_is_as_large_as_estimated(tiny, word, gh) -> None:
    recipe = tiny(word, gh=gh)
    images = training_set(recipe.data)
    size = input_size(recipe.data, images)
    said = run_size(recipe, image_size=size, num_images=len(images), num_classes=10)

    method = build_method(recipe, size)
    beside = AuxiliaryState(recipe, images, method)
    optimizer = build_optimizer(method, recipe.optim)
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [*method.state_dict().values(), *beside.state_dict().values()]
    state += [one for kept in optimizer.state.values() for one in kept.values()]
    written = sum(one.numel() * one.element_size() for one in state)

    held = sum(parameter.numel() for parameter in method.parameters()) * 4
    assert said.trained == held
    assert said.optimizer == held * (2 if "adamw" in word else 1)
    assert 0.8 * written < said.checkpoint < 1.05 * written


def test_sizing_allocates_nothing_and_leaves_the_random_state(tiny) -> None:
    before = torch.random.get_rng_state()
    size = run_size(
        tiny("model.backbone=vit_large", "model.width=1", "data.size=32"),
        image_size=32,
        num_images=10,
        num_classes=2,
    )
    assert size.weights > 1.2e9
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_moving_average_of_the_weights_is_part_of_a_checkpoint(tiny) -> None:
    words = ("method=null", "finetune.objective=ce")
    plain, averaged = (
        run_size(tiny(*words, *more), image_size=8, num_images=118, num_classes=10)
        for more in ((), ("finetune.ema=0.9",))
    )
    assert averaged.checkpoint == plain.checkpoint + plain.weights
