import pytest
import torch
from torch import Tensor

from sslgh.functional import embedding_pull
from sslgh.functional.tightness import class_tightness

PRIOR = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)


def problem(n: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 6, dtype=torch.float64, generator=generator).requires_grad_()
    proxies = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    return z, torch.randint(3, (n,), generator=generator), proxies


def looped(z: Tensor, target: Tensor, tau: float, proxies: Tensor | None) -> Tensor:
    """The formula of the docstring, in loops over distances."""
    members = [*z, *(proxies if proxies is not None else [])]
    labels = [*target.tolist(), *(range(4) if proxies is not None else [])]
    members = [m / m.norm() for m in members]
    mean_weight = sum(pi * pi ** (-tau / 4) for pi in PRIOR.tolist())
    losses = []
    for i, y in enumerate(target.tolist()):
        mates = [p for p in range(len(members)) if labels[p] == y and p != i]
        squares = [(members[i] - members[p]).square().sum() for p in mates]
        losses.append(PRIOR[y] ** (-tau / 4) / mean_weight * sum(squares) / len(squares))
    return torch.stack(losses)


@pytest.mark.parametrize("tau", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("with_proxies", [False, True])
def test_embedding_pull_equals_its_formula_in_loops(tau, with_proxies) -> None:
    z, target, proxies = problem()
    proxies = proxies if with_proxies else None
    found = embedding_pull(z, target, PRIOR, tau=tau, proxies=proxies)
    torch.testing.assert_close(found, looped(z, target, tau, proxies))


def test_embedding_pull_gradient_agrees_with_finite_differences() -> None:
    z, target, proxies = problem(6)
    assert torch.autograd.gradcheck(
        lambda a, b: embedding_pull(a, target, PRIOR, tau=1.0, proxies=b), (z, proxies)
    )


def test_unweighted_it_averages_to_the_tightness_of_the_class() -> None:
    z, target, _ = problem(30)
    loss = embedding_pull(z, target, PRIOR, tau=0.0)
    mean = torch.stack([loss[target == y].mean() for y in range(3)])
    torch.testing.assert_close(mean, class_tightness(z, target, 4)[:3])


def test_its_weights_average_to_one_over_samples_whatever_the_scale_of_the_prior() -> None:
    # Each class a right angle, d^2 = 2, so that the loss is twice the weight.
    z, target = torch.eye(2, dtype=torch.float64).repeat(4, 1), torch.arange(8) // 2
    for prior in (PRIOR, 50 * PRIOR):
        weight = embedding_pull(z, target, prior, tau=1.0)[::2] / 2
        torch.testing.assert_close((PRIOR * weight).sum(), torch.ones(()).double())
        assert (weight.diff() > 0).all()


def test_rivals_are_not_looked_at() -> None:
    z, target, proxies = problem()
    others = target != 0
    moved = torch.where(others[:, None], z.flip(1), z)
    proxies_moved = torch.cat([proxies[:1], -proxies[1:]])
    torch.testing.assert_close(
        embedding_pull(moved, target, PRIOR, tau=1.0, proxies=proxies_moved)[~others],
        embedding_pull(z, target, PRIOR, tau=1.0, proxies=proxies)[~others],
    )


def test_embedding_pull_names_what_does_not_fit() -> None:
    z, target, _ = problem()
    with pytest.raises(ValueError, match=r"proxies must be \(4, 6\)"):
        embedding_pull(z, target, PRIOR, tau=1.0, proxies=torch.ones(3, 6))
    with pytest.raises(ValueError, match="tau must not be negative"):
        embedding_pull(z, target, PRIOR, tau=-1.0)
    with pytest.raises(ValueError, match="prior must have shape"):
        embedding_pull(z, target, PRIOR[None], tau=1.0)
