"""The size of a checkpoint is estimated before the run."""

import pytest
import torch

from sslgh.data import input_size, training_set
from sslgh.doctor.memory_estimate import checkpoint_bytes
from sslgh.engine.build import AuxiliaryState, build_method, build_network
from sslgh.engine.optim import build_optimizer

WORDS = ["optim.name=sgd", "optim.name=adamw"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("gh", [False, True])
def test_a_checkpoint_is_as_large_as_estimated(tiny, word, gh) -> None:
    recipe = tiny(word, gh=gh)
    images = training_set(recipe.data)
    size = input_size(recipe.data, images)
    estimated = checkpoint_bytes(recipe, image_size=size, num_images=len(images), num_classes=10)

    method = build_method(recipe, size)
    aux_state = AuxiliaryState(recipe, images, method)
    optimizer = build_optimizer(method, recipe.optim)
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [*method.state_dict().values(), *aux_state.state_dict().values()]
    state += [one for kept in optimizer.state.values() for one in kept.values()]
    written = sum(one.numel() * one.element_size() for one in state)

    assert 0.8 * written < estimated < 1.05 * written


def test_sizing_allocates_nothing_and_leaves_the_random_state(tiny) -> None:
    before = torch.random.get_rng_state()
    size = checkpoint_bytes(
        tiny("model.backbone=vit_large", "model.width=1", "data.size=32"),
        image_size=32,
        num_images=10,
        num_classes=2,
    )
    assert size > 1.2e9
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_moving_average_of_the_weights_is_part_of_a_checkpoint(tiny) -> None:
    words = ("method=null", "finetune.objective=ce")
    plain, averaged = (
        checkpoint_bytes(tiny(*words, *more), image_size=8, num_images=118, num_classes=10)
        for more in ((), ("finetune.ema=0.9",))
    )
    weights = sum(t.nbytes for t in build_network(tiny(*words), 8, 10).state_dict().values())
    assert averaged == plain + weights


def test_the_optimizer_keeps_no_state_for_what_an_adapter_freezes(tiny) -> None:
    whole, adapted = (
        checkpoint_bytes(
            tiny("model.init=runs/given", *more), image_size=8, num_images=118, num_classes=10
        )
        for more in ((), ("model.adapter={name: norm}",))
    )
    assert adapted < 0.75 * whole
