import math

import pytest
import torch
from torch import Tensor

from sslgh.functional import adjust_logits, logit_adjusted_cross_entropy, margin_cross_entropy

PRIOR = torch.tensor([0.7, 0.2, 0.07, 0.03], dtype=torch.float64)


def problem(n: int = 9, c: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, c, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randint(c, (n,), generator=generator)


def equation_eleven(logits: Tensor, target: Tensor, delta: Tensor, alpha: Tensor) -> Tensor:
    """LA eq. 11 as a double loop."""
    losses = []
    for f, y in zip(logits, target.tolist(), strict=True):
        rivals = [(delta[y, r] + f[r] - f[y]).exp() for r in range(len(f)) if r != y]
        losses.append(alpha[y] * (1 + sum(rivals)).log())
    return torch.stack(losses)


def random_margin() -> Tensor:
    return torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_margin_cross_entropy_equals_the_double_loop_of_equation_eleven() -> None:
    logits, target = problem()
    delta, alpha = random_margin(), 1 / PRIOR
    found = margin_cross_entropy(logits, target, margin=delta, weight=alpha)
    torch.testing.assert_close(found, equation_eleven(logits, target, delta, alpha))


def test_additive_margins_equal_their_matrix() -> None:
    logits, target = problem()
    row, column = random_margin()[0], random_margin()[1]
    pair = margin_cross_entropy(logits, target, margin=(row, column))
    matrix = margin_cross_entropy(logits, target, margin=row[:, None] + column)
    torch.testing.assert_close(pair, matrix)


def test_a_margin_for_each_sample_equals_the_rows_of_its_class() -> None:
    logits, target = problem()
    delta = random_margin()
    torch.testing.assert_close(
        margin_cross_entropy(logits, target, margin=delta[target]),
        margin_cross_entropy(logits, target, margin=delta),
    )


def test_without_margin_it_is_cross_entropy() -> None:
    logits, target = problem()
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(margin_cross_entropy(logits, target), expected)


def test_margin_cross_entropy_gradient_agrees_with_finite_differences() -> None:
    logits, target = problem(4)
    delta = random_margin()
    assert torch.autograd.gradcheck(lambda f: margin_cross_entropy(f, target, margin=delta), logits)
    assert torch.autograd.gradcheck(
        lambda f: margin_cross_entropy(f, target, margin=(delta[0], delta[1])), logits
    )


def test_logit_adjusted_loss_has_the_two_forms_of_equation_ten() -> None:
    logits, target = problem()
    for tau in (0.5, 1.0, 2.0):
        found = logit_adjusted_cross_entropy(logits, target, PRIOR, tau=tau)
        ratio = tau * (PRIOR.log() - PRIOR.log()[:, None])
        looped = equation_eleven(logits, target, ratio, torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(found, looped)
        shifted = torch.nn.functional.cross_entropy(
            logits + tau * PRIOR.log(), target, reduction="none"
        )
        torch.testing.assert_close(found, shifted)


def test_logit_adjusted_loss_with_tau_zero_or_a_flat_prior_is_cross_entropy() -> None:
    logits, target = problem()
    expected = margin_cross_entropy(logits, target)
    for prior, tau in ((PRIOR, 0.0), (torch.ones(4) / 4, 1.0)):
        found = logit_adjusted_cross_entropy(logits, target, prior.double(), tau=tau)
        torch.testing.assert_close(found, expected)


def test_a_factor_on_the_prior_changes_nothing() -> None:
    logits, target = problem()
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits, target, 1000 * PRIOR),
        logit_adjusted_cross_entropy(logits, target, PRIOR),
    )
    torch.testing.assert_close(
        adjust_logits(logits, 1000 * PRIOR).softmax(1), adjust_logits(logits, PRIOR).softmax(1)
    )


def test_logit_adjustment_moves_with_a_renumbering_of_the_classes() -> None:
    logits, target = problem()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits[:, order], order.argsort()[target], PRIOR[order]),
        logit_adjusted_cross_entropy(logits, target, PRIOR),
    )


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_a_class_without_share_leaves_the_sum_and_is_never_predicted(tau) -> None:
    logits, _ = problem()
    target = torch.zeros(9, dtype=torch.int64)
    prior = torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64)
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits, target, prior, tau=tau),
        logit_adjusted_cross_entropy(logits[:, kept], target, prior[kept], tau=tau),
    )
    adjusted = adjust_logits(logits, prior, tau=tau)
    assert (adjusted[:, 2] == -torch.inf).all()
    torch.testing.assert_close(adjusted[:, kept], logits[:, kept] - tau * prior[kept].log())


def test_the_gradient_survives_a_class_without_share() -> None:
    logits, _ = problem()
    prior = torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64)
    loss = logit_adjusted_cross_entropy(logits, torch.zeros(9, dtype=torch.int64), prior).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 2] == 0).all()


def test_post_hoc_adjustment_of_the_log_posterior_is_the_balanced_bayes_rule() -> None:
    likelihood = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    posterior = likelihood * PRIOR / (likelihood * PRIOR).sum(1, keepdim=True)
    assert torch.equal(adjust_logits(posterior.log(), PRIOR).argmax(1), likelihood.argmax(1))


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = logit_adjusted_cross_entropy(logits, torch.tensor([1]), torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(loss, torch.tensor([2e4 + math.log(9)]))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_margins_lose_nothing_to_half_precision() -> None:
    logits, target = problem()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = logit_adjusted_cross_entropy(half, target, PRIOR)
    assert torch.equal(found, logit_adjusted_cross_entropy(half.float(), target, PRIOR.float()))


def test_margins_name_what_does_not_fit() -> None:
    logits, target = problem()
    with pytest.raises(ValueError, match=r"margin must be \(4, 4\)"):
        margin_cross_entropy(logits, target, margin=torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"prior must have shape \(4,\)"):
        logit_adjusted_cross_entropy(logits, target, torch.ones(5))
    with pytest.raises(ValueError, match="labels"):
        margin_cross_entropy(logits, target[:3])
    with pytest.raises(ValueError, match="labels must be integers"):
        margin_cross_entropy(logits, target.double())
    with pytest.raises(ValueError, match="tau must not be negative"):
        adjust_logits(logits, PRIOR, tau=-1)
