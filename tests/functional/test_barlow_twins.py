import math

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from sslgh.distributed import gather
from sslgh.functional import barlow_twins

WEIGHTS = torch.tensor([2.0, 1, 3, 1, 0, 2], dtype=torch.float64)
REPEATED = torch.tensor([0, 0, 1, 2, 2, 2, 3, 5, 5])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def equation_one(z1: Tensor, z2: Tensor, lambd: float) -> Tensor:
    """Barlow Twins eq. 1 in loops, on axes standardized as in the paper's code."""
    n, d = z1.shape

    def standardized(z: Tensor) -> list[list[Tensor]]:
        columns = []
        for axis in range(d):
            mean = sum(z[:, axis]) / n
            variance = sum((value - mean) ** 2 for value in z[:, axis]) / n
            columns.append([(value - mean) / (variance + 1e-5) ** 0.5 for value in z[:, axis]])
        return columns

    one, two = standardized(z1), standardized(z2)
    loss = torch.zeros((), dtype=z1.dtype)
    for i in range(d):
        for j in range(d):
            entry = sum(a * b for a, b in zip(one[i], two[j], strict=True)) / n
            loss = loss + ((1 - entry) ** 2 if i == j else lambd * entry**2)
    return loss


@pytest.mark.parametrize(("n", "d", "lambd"), [(2, 3, 0.5), (7, 4, 5e-3), (5, 1, 0.1)])
def test_barlow_twins_equals_the_equation_of_the_paper(n: int, d: int, lambd: float) -> None:
    z1, z2 = draw(n, d), draw(n, d, seed=1)
    torch.testing.assert_close(barlow_twins(z1, z2, lambd=lambd), equation_one(z1, z2, lambd))


@pytest.mark.parametrize("weights", [None, torch.full((32,), 0.7)])
def test_barlow_twins_has_the_value_and_gradient_of_lightly(weights) -> None:
    z1, z2 = draw(32, 16).requires_grad_(), draw(32, 16, seed=1).requires_grad_()
    ours = barlow_twins(z1, z2, lambd=5e-3, weights=weights)
    local = torch.autograd.grad(ours, (z1, z2))
    theirs = BarlowTwinsLoss(lambda_param=5e-3)(z1, z2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(local, torch.autograd.grad(theirs, (z1, z2)))


def test_barlow_twins_weights_count_like_repeated_samples() -> None:
    z1, z2 = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    weighted = barlow_twins(z1, z2, lambd=0.1, weights=WEIGHTS)
    repeated = barlow_twins(z1[REPEATED], z2[REPEATED], lambd=0.1)
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=0)
    local = torch.autograd.grad(weighted, (z1, z2))
    torch.testing.assert_close(local, torch.autograd.grad(repeated, (z1, z2)))


def test_barlow_twins_ignores_a_common_factor_of_the_weights() -> None:
    z1, z2 = draw(6, 4), draw(6, 4, seed=1)
    expected = barlow_twins(z1, z2, lambd=0.1, weights=WEIGHTS)
    torch.testing.assert_close(barlow_twins(z1, z2, lambd=0.1, weights=17 * WEIGHTS), expected)


def test_barlow_twins_of_equal_independent_axes_is_nothing() -> None:
    z = 10 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert barlow_twins(z, z, lambd=1.0) < 1e-10


def test_barlow_twins_of_views_that_know_nothing_of_each_other_is_their_width() -> None:
    z = 10 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    other = 10 * torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)[:, None].expand(4, 2)
    torch.testing.assert_close(
        barlow_twins(z, other, lambd=1.0), torch.tensor(2.0, dtype=torch.float64)
    )


def test_barlow_twins_ignores_shifts_and_nearly_the_lengths_of_the_axes() -> None:
    z1, z2 = draw(8, 5), draw(8, 5, seed=1)
    moved = 3 * z1 * draw(5, seed=2).exp() + draw(5, seed=3)
    expected = barlow_twins(z1, z2, lambd=0.1)
    torch.testing.assert_close(barlow_twins(moved, z2, lambd=0.1), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(barlow_twins(z1 + 5, z2, lambd=0.1), expected)


def test_barlow_twins_does_not_care_which_view_is_first_nor_for_the_order_of_the_images() -> None:
    z1, z2 = draw(6, 4), draw(6, 4, seed=1)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    expected = barlow_twins(z1, z2, lambd=0.1, weights=WEIGHTS)
    torch.testing.assert_close(barlow_twins(z2, z1, lambd=0.1, weights=WEIGHTS), expected)
    found = barlow_twins(z1[order], z2[order], lambd=0.1, weights=WEIGHTS[order])
    torch.testing.assert_close(found, expected)


def test_barlow_twins_gives_no_gradient_to_images_of_weight_zero_nor_to_weights() -> None:
    z1, z2 = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    weights = WEIGHTS.clone().requires_grad_()
    barlow_twins(z1, z2, lambd=0.1, weights=weights).backward()
    assert (z1.grad[4] == 0).all()
    assert (z1.grad[:4] != 0).all()
    assert weights.grad is None


def test_barlow_twins_stays_finite_where_an_axis_is_constant_or_all_weights_are_zero() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    for weights in (None, torch.zeros(4)):
        loss = barlow_twins(z, z, lambd=0.1, weights=weights)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss == 3
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_barlow_twins_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    z1, z2 = 300 * draw(16, 8).to(dtype), 300 * draw(16, 8, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = barlow_twins(z1, z2, lambd=0.1)
    assert torch.equal(half, barlow_twins(z1.float(), z2.float(), lambd=0.1))


def test_barlow_twins_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 5\)"):
        barlow_twins(torch.ones(4, 3), torch.ones(4, 5), lambd=0.1)
    with pytest.raises(ValueError, match=r"weights must have shape \(4,\), .* got \(3,\)"):
        barlow_twins(torch.ones(4, 3), torch.ones(4, 3), lambd=0.1, weights=torch.ones(3))
    with pytest.raises(ValueError, match="lambd must be positive"):
        barlow_twins(torch.ones(4, 3), torch.ones(4, 3), lambd=math.nan)


def part(z1: Tensor, z2: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, ...]:
    """Loss and gradient of this process's rows, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    a, b = z1[local].clone().requires_grad_(), z2[local].clone().requires_grad_()
    loss = barlow_twins(a, b, lambd=0.1, weights=weights[local], gather=gather)
    gradients = torch.autograd.grad(loss, (a, b))
    return loss.detach(), *(gradient / dist.get_world_size() for gradient in gradients)


@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 7, 12], [0, 1, 12]])
def test_barlow_twins_does_not_depend_on_the_number_of_processes(two_processes, cuts) -> None:
    z1, z2 = draw(12, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    weights = draw(12, seed=2).exp()
    whole = barlow_twins(z1, z2, lambd=0.1, weights=weights)
    gradients = torch.autograd.grad(whole, (z1, z2))
    parts = two_processes(part, z1.detach(), z2.detach(), weights, cuts)
    for found in parts:
        torch.testing.assert_close(found[0], whole.detach())
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([p[view + 1] for p in parts]), gradients[view])
