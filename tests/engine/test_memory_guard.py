import pytest
import torch

from sslgh.engine import memory_guard
from sslgh.engine.launch import init_accelerator
from sslgh.engine.memory_guard import free_memory
from sslgh.engine.pretraining import dry_run_pretraining
from sslgh.recipe import RecipeError


@pytest.mark.parametrize(
    "word", ["model.projector.hidden=2000000000", "model.width=1e5", "model.width=1e300"]
)
def test_a_network_beyond_memory_is_refused_before_it_is_built(tiny, word) -> None:
    with pytest.raises(RecipeError, match=r"^model: the network .* lower model\.width"):
        dry_run_pretraining(tiny(word), init_accelerator())


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 3), ("adamw", 4)])
def test_a_weight_counts_with_its_gradient_and_its_optimizer_state(
    tiny, monkeypatch, optimizer, copies
) -> None:
    recipe = tiny(f"optim.name={optimizer}")
    monkeypatch.setattr(memory_guard, "free_memory", lambda: copies * 4 * 10**6)
    with memory_guard.memory_guard(recipe):
        torch.nn.Linear(1000, 1000, bias=False)
    refused = pytest.raises(
        RecipeError, match=r"needs about \d.* MB, but 1[26]\.00 MB of memory are free"
    )
    with refused, memory_guard.memory_guard(recipe):
        torch.nn.Linear(1001, 1000, bias=False)
    with memory_guard.memory_guard(recipe, trained=False):  # a bank has no gradient
        torch.zeros(1000, 1000 * copies)


@pytest.mark.parametrize("make", [torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn])
def test_no_tensor_is_allocated_that_does_not_fit(tiny, make) -> None:
    with pytest.raises(RecipeError, match="of memory are free"), memory_guard.memory_guard(tiny()):
        make(2**38, 2)


def test_the_random_numbers_of_a_network_are_those_without_the_guard(tiny) -> None:
    found = []
    for guarded in (False, True):
        torch.manual_seed(0)
        if guarded:
            with memory_guard.memory_guard(tiny()):
                found.append(
                    (
                        torch.nn.Linear(3, 3).weight,
                        torch.randn(2, generator=torch.default_generator),
                    )
                )
        else:
            found.append((torch.nn.Linear(3, 3).weight, torch.randn(2)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_other_errors_of_a_network_pass_through(tiny) -> None:
    with pytest.raises(RuntimeError, match="negative dimension"), memory_guard.memory_guard(tiny()):
        torch.empty(-1)


def test_processes_of_a_machine_share_its_memory(monkeypatch) -> None:
    alone = free_memory()
    assert 10**8 < alone < 10**15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory() == pytest.approx(alone / 4, rel=0.2)
