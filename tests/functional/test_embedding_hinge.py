import pytest
import torch
from torch import Tensor

from sslgh.functional import embedding_hinge, embedding_margin

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
    losses = []
    for i, y in enumerate(target.tolist()):
        margin = tau * (PRIOR.min() / PRIOR[y]) ** 0.25
        squares = [(members[i] - m).square().sum() for m in members]
        nearest = min(d for d, label in zip(squares, labels, strict=True) if label != y)
        mates = [p for p in range(len(members)) if labels[p] == y and p != i]
        each = [max(margin + squares[p] - nearest, 0 * margin) for p in mates]
        losses.append(sum(each) / len(each))
    return torch.stack(losses)


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("with_proxies", [False, True])
def test_embedding_hinge_equals_its_formula_in_loops(tau, with_proxies) -> None:
    z, target, proxies = problem()
    proxies = proxies if with_proxies else None
    found = embedding_hinge(z, target, PRIOR, tau=tau, proxies=proxies)
    torch.testing.assert_close(found, looped(z, target, tau, proxies))
    assert (found > 0).sum() > 7


def test_embedding_hinge_gradient_agrees_with_finite_differences() -> None:
    z, target, proxies = problem(6)
    assert torch.autograd.gradcheck(
        lambda a, b: embedding_hinge(a, target, PRIOR, tau=1.0, proxies=b), (z, proxies)
    )


def test_without_margin_it_is_the_cold_limit_of_the_embedding_margin() -> None:
    z, target, proxies = problem()
    # A cosine is half a squared distance.
    soft = 2e-6 * embedding_margin(z, target, PRIOR, tau=0.0, temperature=1e-6, proxies=proxies)
    hinge = embedding_hinge(z, target, PRIOR, tau=0.0, proxies=proxies)
    torch.testing.assert_close(soft, hinge, rtol=0, atol=1e-4)


def test_a_factor_on_the_prior_changes_nothing() -> None:
    z, target, _ = problem()
    torch.testing.assert_close(
        embedding_hinge(z, target, 1000 * PRIOR, tau=1.0),
        embedding_hinge(z, target, PRIOR, tau=1.0),
    )


def test_a_margin_that_is_kept_costs_nothing() -> None:
    z = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0).requires_grad_()
    loss = embedding_hinge(z, torch.tensor([0, 0, 1, 1]), PRIOR[:2] / 0.9, tau=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_embedding_hinge_names_what_does_not_fit() -> None:
    z, target, _ = problem()
    with pytest.raises(ValueError, match=r"proxies must be \(4, 6\)"):
        embedding_hinge(z, target, PRIOR, tau=1.0, proxies=torch.ones(3, 6))
    with pytest.raises(ValueError, match="tau must not be negative"):
        embedding_hinge(z, target, PRIOR, tau=-1.0)
    with pytest.raises(ValueError, match="prior must have shape"):
        embedding_hinge(z, target, PRIOR[None], tau=1.0)
