import pytest
import torch
from torch import nn

from sslgh.engine.optimiser import build_optimiser, set_learning_rate
from sslgh.recipe import Optim


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize(("name", "decay_all", "exempt"), [
    ("sgd", True, 0), ("sgd", False, 4), ("adamw", True, 0), ("adamw", False, 4), ("lars", True, 4),
])  # fmt: skip
def test_biases_and_norms_are_exempt_where_they_should_be(name, decay_all, exempt) -> None:
    optimiser = build_optimiser(model(), Optim(name=name, decay_all=decay_all, weight_decay=0.1))
    decayed = [len(g["params"]) for g in optimiser.param_groups if g["weight_decay"] > 0]
    free = [len(g["params"]) for g in optimiser.param_groups if g["weight_decay"] == 0]
    assert (sum(decayed), sum(free)) == (6 - exempt, exempt)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_step_lowers_the_loss_at_the_rate_that_was_set(name) -> None:
    net, x = model(), torch.randn(16, 4)
    optimiser = build_optimiser(net, Optim(name=name, lr=9.0, weight_decay=1e-4))
    set_learning_rate(optimiser, 0.01)
    assert all(group["lr"] == 0.01 for group in optimiser.param_groups)
    before = net(x).square().mean()
    before.backward()
    optimiser.step()
    assert net(x).square().mean() < before
