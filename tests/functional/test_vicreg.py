import math

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor

from sslgh.distributed import gather
from sslgh.functional import vicreg

WEIGHTS = torch.tensor([2.0, 1, 3, 1, 0, 2], dtype=torch.float64)
REPEATED = torch.tensor([0, 0, 1, 2, 2, 2, 3, 5, 5])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def equations(z1: Tensor, z2: Tensor) -> list[Tensor]:
    """Invariance, variance and covariance in loops, as the paper's code averages them."""
    n, d = z1.shape
    distance = sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / n / d
    spread = redundancy = torch.zeros((), dtype=z1.dtype)
    for z in (z1, z2):
        means = [sum(z[:, j]) / n for j in range(d)]
        for i in range(d):
            for j in range(d):
                products = [(z[k, i] - means[i]) * (z[k, j] - means[j]) for k in range(n)]
                entry = sum(products) / (n - 1)
                if i == j:
                    spread = spread + max(0, 1 - (entry + 1e-4) ** 0.5) / d / 2
                else:
                    redundancy = redundancy + entry**2 / d
    return [distance, spread, redundancy]


@pytest.mark.parametrize(("n", "d"), [(2, 3), (7, 4), (5, 1)])
def test_vicreg_equals_the_equations_of_the_paper(n: int, d: int) -> None:
    z1, z2 = draw(n, d), draw(n, d, seed=1)
    terms = equations(z1, z2)
    for factors in ((25, 25, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        invariance, variance, covariance = factors
        found = vicreg(z1, z2, invariance=invariance, variance=variance, covariance=covariance)
        expected = sum(factor * term for factor, term in zip(factors, terms, strict=True))
        torch.testing.assert_close(found, torch.as_tensor(expected))


@pytest.mark.parametrize("weights", [None, torch.ones(32)])
def test_vicreg_has_the_value_and_gradient_of_lightly(weights) -> None:
    z1, z2 = draw(32, 16).requires_grad_(), draw(32, 16, seed=1).requires_grad_()
    ours = vicreg(z1, z2, weights=weights)
    local = torch.autograd.grad(ours, (z1, z2))
    theirs = VICRegLoss()(z1, z2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(local, torch.autograd.grad(theirs, (z1, z2)))


def test_vicreg_weights_count_like_repeated_samples() -> None:
    z1, z2 = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    weighted = vicreg(z1, z2, weights=WEIGHTS)
    repeated = vicreg(z1[REPEATED], z2[REPEATED])
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=0)
    local = torch.autograd.grad(weighted, (z1, z2))
    torch.testing.assert_close(local, torch.autograd.grad(repeated, (z1, z2)))


def test_vicreg_of_one_point_is_the_whole_hinge() -> None:
    """No variance but eps, so that every axis lacks 1 - sqrt(eps), in the mean of the views."""
    same = torch.ones(6, 4, dtype=torch.float64)
    expected = torch.tensor(25 * (1 - 0.01), dtype=torch.float64)
    torch.testing.assert_close(vicreg(same, same, eps=1e-4), expected)


def test_vicreg_of_equal_independent_spread_axes_is_nothing() -> None:
    z = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert vicreg(z, z) == 0


def test_vicreg_does_not_care_which_view_is_first_nor_for_order_or_a_common_shift() -> None:
    z1, z2 = draw(6, 4), draw(6, 4, seed=1)
    order, shift = torch.tensor([3, 1, 5, 0, 2, 4]), draw(4, seed=2)
    expected = vicreg(z1, z2, weights=WEIGHTS)
    torch.testing.assert_close(vicreg(z2, z1, weights=WEIGHTS), expected)
    torch.testing.assert_close(vicreg(z1 + shift, z2 + shift, weights=WEIGHTS), expected)
    found = vicreg(z1[order], z2[order], weights=WEIGHTS[order])
    torch.testing.assert_close(found, expected)


def test_vicreg_gives_no_gradient_to_images_of_weight_zero_nor_to_weights() -> None:
    z1, z2 = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    weights = WEIGHTS.clone().requires_grad_()
    vicreg(z1, z2, weights=weights).backward()
    assert (z1.grad[4] == 0).all()
    assert (z1.grad[:4] != 0).all()
    assert weights.grad is None


def test_vicreg_stays_finite_where_an_axis_is_constant_or_hardly_an_image_is_left() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    for weights in (None, torch.zeros(4), torch.full((4,), 0.25), torch.full((4,), 0.2)):
        loss = vicreg(z, z, weights=weights)
        (gradient,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(loss, torch.tensor(25 * 0.99))
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vicreg_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    z1, z2 = 300 * draw(16, 8).to(dtype), 300 * draw(16, 8, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = vicreg(z1, z2)
    assert half.isfinite()
    assert torch.equal(half, vicreg(z1.float(), z2.float()))


def test_vicreg_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 5\)"):
        vicreg(torch.ones(4, 3), torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"weights must have shape \(4,\), .* got \(3,\)"):
        vicreg(torch.ones(4, 3), torch.ones(4, 3), weights=torch.ones(3))
    with pytest.raises(ValueError, match="needs a batch of 2 images or more, got 1"):
        vicreg(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="eps must be positive"):
        vicreg(torch.ones(4, 3), torch.ones(4, 3), eps=math.nan)


def part(z1: Tensor, z2: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, ...]:
    """Loss and gradient of this process's rows, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    a, b = z1[local].clone().requires_grad_(), z2[local].clone().requires_grad_()
    loss = vicreg(a, b, weights=weights[local], gather=gather)
    gradients = torch.autograd.grad(loss, (a, b))
    return loss.detach(), *(gradient / dist.get_world_size() for gradient in gradients)


@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 7, 12], [0, 1, 12]])
def test_vicreg_does_not_depend_on_the_number_of_processes(two_processes, cuts) -> None:
    z1, z2 = draw(12, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    weights = draw(12, seed=2).exp()
    whole = vicreg(z1, z2, weights=weights)
    gradients = torch.autograd.grad(whole, (z1, z2))
    parts = two_processes(part, z1.detach(), z2.detach(), weights, cuts)
    for found in parts:
        torch.testing.assert_close(found[0], whole.detach())
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([p[view + 1] for p in parts]), gradients[view])
