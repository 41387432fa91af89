import pytest
import torch
from torch import Tensor

from sslgh.functional import (
    embedding_hinge,
    embedding_margin,
    embedding_pull,
    has_mate,
    logit_adjusted_cross_entropy,
)
from sslgh.functional.groups import class_tightness

PRIOR = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)


def problem(n: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 6, dtype=torch.float64, generator=generator).requires_grad_()
    proxies = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    return z, torch.randint(3, (n,), generator=generator), proxies


def looped_margin(
    z: Tensor, target: Tensor, tau: float, t: float, proxies: Tensor | None
) -> Tensor:
    """The formula of the docstring, in loops."""
    members = [*z, *(proxies if proxies is not None else [])]
    labels = [*target.tolist(), *(range(4) if proxies is not None else [])]
    members = [m / m.norm() for m in members]
    losses = []
    for i, y in enumerate(target.tolist()):
        s = [members[i] @ m / t for m in members]
        total = torch.zeros((), dtype=torch.float64)
        mates = [p for p in range(len(members)) if labels[p] == y and p != i]
        for p in mates:
            inner = torch.ones((), dtype=torch.float64)
            for other in set(labels) - {y}:
                rivals = [(s[k] - s[p]).exp() for k in range(len(members)) if labels[k] == other]
                inner = inner + (PRIOR[other] / PRIOR[y]) ** tau * sum(rivals) / len(rivals)
            total = total + inner.log()
        losses.append(total / max(len(mates), 1))
    return torch.stack(losses)


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("with_proxies", [False, True])
def test_embedding_margin_equals_its_formula_in_loops(tau, with_proxies) -> None:
    z, target, proxies = problem()
    proxies = proxies if with_proxies else None
    found = embedding_margin(z, target, PRIOR, tau=tau, temperature=0.2, proxies=proxies)
    torch.testing.assert_close(found, looped_margin(z, target, tau, 0.2, proxies))


def test_embedding_margin_gradient_agrees_with_finite_differences() -> None:
    z, target, proxies = problem(5)
    assert torch.autograd.gradcheck(
        lambda a, b: embedding_margin(a, target, PRIOR, tau=1.0, temperature=0.5, proxies=b),
        (z, proxies),
    )


def test_with_one_proxy_a_class_and_no_mates_it_is_the_logit_adjusted_loss() -> None:
    z, _, proxies = problem()
    for y in range(4):
        anchor, target = z[y : y + 1], torch.tensor([y])
        found = embedding_margin(anchor, target, PRIOR, tau=1.0, temperature=0.3, proxies=proxies)
        cosine = torch.nn.functional.normalize(anchor) @ torch.nn.functional.normalize(proxies).T
        expected = logit_adjusted_cross_entropy(cosine / 0.3, target, PRIOR)
        torch.testing.assert_close(found, expected)


def test_an_anchor_without_a_mate_gives_zero_and_no_gradient() -> None:
    z, _, _ = problem(5)
    target = torch.tensor([0, 0, 1, 2, 2])
    loss = embedding_margin(z, target, PRIOR, tau=1.0, temperature=0.1)
    assert loss[2] == 0
    assert (loss[[0, 1, 3, 4]] > 0).all()
    assert has_mate(target).tolist() == [True, True, False, True, True]


def test_a_batch_of_one_class_is_zero_with_a_finite_gradient() -> None:
    z, _, _ = problem(5)
    loss = embedding_margin(z, torch.zeros(5, dtype=torch.int64), PRIOR, tau=1.0, temperature=0.1)
    assert (loss == 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert gradient.isfinite().all()


def test_a_rare_anchor_needs_a_larger_margin_than_a_common_one() -> None:
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    prior = torch.tensor([0.9, 0.1])
    common, _, rare, _ = embedding_margin(
        z, torch.tensor([0, 0, 1, 1]), prior, tau=1.0, temperature=1.0
    )
    assert rare > common
    equal = embedding_margin(z, torch.tensor([0, 0, 1, 1]), prior, tau=0.0, temperature=1.0)
    torch.testing.assert_close(equal, equal[:1].expand(4))


def test_more_samples_of_a_rival_class_do_not_count_twice() -> None:
    z, target, _ = problem()
    more, again = torch.cat([z, z[target == 0]]), torch.cat([target, target[target == 0]])
    kept = target != 0
    torch.testing.assert_close(
        embedding_margin(more, again, PRIOR, tau=1.0, temperature=0.2)[: len(z)][kept],
        embedding_margin(z, target, PRIOR, tau=1.0, temperature=0.2)[kept],
    )


def test_embedding_margin_is_exact_at_low_temperature_in_float32() -> None:
    z, target, proxies = problem()
    exact = embedding_margin(z, target, PRIOR, tau=1.0, temperature=1e-3, proxies=proxies)
    single = embedding_margin(
        z.float(), target, PRIOR.float(), tau=1.0, temperature=1e-3, proxies=proxies.float()
    )
    assert single.isfinite().all()
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-2)


def test_embedding_margin_loses_nothing_to_half_precision() -> None:
    z, target, _ = problem()
    half, prior = z.detach().bfloat16(), PRIOR.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = embedding_margin(half, target, prior, tau=1.0, temperature=0.1)
    assert torch.equal(
        found, embedding_margin(half.float(), target, prior, tau=1.0, temperature=0.1)
    )


def test_embedding_margin_names_what_does_not_fit() -> None:
    z, target, _ = problem()
    with pytest.raises(ValueError, match=r"proxies must be \(4, 6\)"):
        embedding_margin(z, target, PRIOR, tau=1.0, temperature=0.1, proxies=torch.ones(3, 6))
    with pytest.raises(ValueError, match="temperature must be positive"):
        embedding_margin(z, target, PRIOR, tau=1.0, temperature=0.0)


def looped_hinge(z: Tensor, target: Tensor, tau: float, proxies: Tensor | None) -> Tensor:
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
    torch.testing.assert_close(found, looped_hinge(z, target, tau, proxies))
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


def test_a_factor_on_the_prior_leaves_the_hinge_as_it_is() -> None:
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


def looped_pull(z: Tensor, target: Tensor, tau: float, proxies: Tensor | None) -> Tensor:
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
    torch.testing.assert_close(found, looped_pull(z, target, tau, proxies))


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


def test_the_pull_does_not_look_at_rivals() -> None:
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
