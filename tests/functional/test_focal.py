import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.ops import sigmoid_focal_loss

from sslgh.functional import focal_cross_entropy


def problem(n: int = 9, c: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, c, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randint(c, (n,), generator=generator)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_cross_entropy_equals_its_formula_in_loops(gamma) -> None:
    logits, target = problem()
    alpha, expected = [0.5, 1.0, 2.0, 4.0], []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        p = math.exp(f[y]) / sum(math.exp(other) for other in f)
        expected.append(-alpha[y] * (1 - p) ** gamma * math.log(p))
    found = focal_cross_entropy(
        logits, target, gamma=gamma, weight=torch.tensor(alpha, dtype=torch.float64)
    )
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_with_two_classes_it_has_the_value_and_gradient_of_torchvision() -> None:
    x = problem(8, 1)[0][:, 0]
    target = torch.arange(8) % 2
    ours = focal_cross_entropy(torch.stack([torch.zeros_like(x), x], 1), target).sum()
    theirs = sigmoid_focal_loss(x, target.double(), alpha=-1, gamma=2, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(total, x) for total in (ours, theirs)))


def test_without_focus_it_is_cross_entropy() -> None:
    logits, target = problem()
    torch.testing.assert_close(
        focal_cross_entropy(logits, target, gamma=0.0),
        cross_entropy(logits, target, reduction="none"),
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_its_gradient_agrees_with_finite_differences(gamma) -> None:
    logits, target = problem(5)
    assert torch.autograd.gradcheck(lambda f: focal_cross_entropy(f, target, gamma=gamma), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_huge_logits_stay_finite_and_a_sure_sample_has_no_gradient(gamma) -> None:
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    found = focal_cross_entropy(logits, torch.tensor([0, 1]), gamma=gamma)
    assert found.tolist() == [0.0, 2e4]
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_a_sample_is_not_lost_where_its_probability_rounds_to_one() -> None:
    logits = torch.tensor([[30.0, 0.0]], requires_grad=True)
    found = focal_cross_entropy(logits, torch.tensor([0]), gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([math.exp(-45)]), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient[0, 1], found[0] * 1.5, rtol=1e-5, atol=0)


def test_a_column_of_minus_infinity_leaves_the_softmax() -> None:
    logits, _ = problem()
    target, kept = torch.arange(9) % 3, torch.tensor([0, 2, 3])
    mask = torch.tensor([0.0, -torch.inf, 0.0, 0.0])
    found = focal_cross_entropy(logits + mask, kept[target])
    torch.testing.assert_close(found, focal_cross_entropy(logits[:, kept], target))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 1] == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_class_without_rivals_has_no_loss(gamma) -> None:
    logits, _ = problem()
    target = torch.zeros(9, dtype=torch.int64)
    alone = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
    for found in (
        focal_cross_entropy(logits[:, :1], target, gamma=gamma),
        focal_cross_entropy(logits + alone, target, gamma=gamma),
    ):
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert (found == 0).all()
        assert (gradient == 0).all()


def test_it_moves_with_a_renumbering_of_the_classes() -> None:
    logits, target = problem()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        focal_cross_entropy(logits[:, order], order.argsort()[target]),
        focal_cross_entropy(logits, target),
    )


def test_it_loses_nothing_to_half_precision() -> None:
    logits, target = problem()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = focal_cross_entropy(half, target)
    assert torch.equal(found, focal_cross_entropy(half.float(), target))


def test_focal_cross_entropy_names_what_does_not_fit() -> None:
    logits, target = problem()
    with pytest.raises(ValueError, match="gamma must not be negative, got -1"):
        focal_cross_entropy(logits, target, gamma=-1)
    with pytest.raises(ValueError, match=r"prior must have shape \(4,\)"):
        focal_cross_entropy(logits, target, weight=torch.ones(3))
    with pytest.raises(ValueError, match="labels must be integers"):
        focal_cross_entropy(logits, target.double())
