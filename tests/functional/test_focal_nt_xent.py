import math

import pytest
import torch
from torch import Tensor

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import focal_nt_xent, nt_xent


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_loops(z1: Tensor, z2: Tensor, temperature: float, gamma: float) -> Tensor:
    """The focal factor on the probability of SimCLR's eq. 1, averaged over the two anchors."""
    n, z = len(z1), [*z1, *z2]
    losses = []
    for i in range(2 * n):
        similar = [(z[i] @ other / (z[i].norm() * other.norm()) / temperature).exp() for other in z]
        p = similar[(i + n) % (2 * n)] / sum(s for k, s in enumerate(similar) if k != i)
        losses.append(-((1 - p) ** gamma) * p.log())
    return torch.stack([(losses[i] + losses[i + n]) / 2 for i in range(n)])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (7, 16, 0.2)])
def test_focal_nt_xent_has_the_value_and_gradient_of_its_formula(n, d, temperature, gamma) -> None:
    z1, z2 = draw(n, d).requires_grad_(), draw(n, d, seed=1).requires_grad_()
    ours = focal_nt_xent(z1, z2, temperature=temperature, gamma=gamma)
    expected = in_loops(z1, z2, temperature, gamma)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss.sum(), (z1, z2)) for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_indistinguishable_images_cost_the_focal_loss_of_one_in_the_candidates() -> None:
    same = torch.ones(6, 4)
    found = focal_nt_xent(same, same, temperature=0.07, gamma=3.0)
    torch.testing.assert_close(found, torch.full((6,), (10 / 11) ** 3 * math.log(11)))


def test_without_focus_it_is_nt_xent() -> None:
    z1, z2 = draw(8, 5), draw(8, 5, seed=1)
    found = focal_nt_xent(z1, z2, temperature=0.2, gamma=0.0)
    torch.testing.assert_close(found, nt_xent(z1, z2, temperature=0.2))


def test_neither_the_length_of_embeddings_nor_the_order_of_views_matters() -> None:
    z1, z2, lengths = draw(8, 5), draw(8, 5, seed=1), draw(8, 1, seed=2).exp()
    torch.testing.assert_close(
        focal_nt_xent(z2 * 3, z1 * lengths, temperature=0.2),
        focal_nt_xent(z1, z2, temperature=0.2),
    )


def test_a_pair_that_is_found_for_sure_keeps_its_digits_in_float32() -> None:
    """1 - p is 1e-8 here and would round to nothing."""
    z = torch.eye(4)
    loss = focal_nt_xent(z, z, temperature=0.05)
    odds = 6 * math.exp(-20)
    p = 1 / (1 + odds)
    expected = (odds * p) ** 2 * math.log1p(odds)
    torch.testing.assert_close(loss, torch.full((4,), expected), rtol=1e-5, atol=0)


def test_impossible_pairs_stay_finite_with_the_gradient_of_nt_xent() -> None:
    z1, z2 = torch.eye(4).requires_grad_(), -torch.eye(4)
    losses = [f(z1, z2, temperature=1e-3) for f in (focal_nt_xent, nt_xent)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), z1) for loss in losses))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_an_image_without_rivals_has_neither_loss_nor_gradient(gamma) -> None:
    z1 = draw(1, 3).requires_grad_()
    loss = focal_nt_xent(z1, draw(1, 3, seed=1), temperature=0.2, gamma=gamma)
    assert loss.tolist() == [0.0]
    assert torch.autograd.grad(loss.sum(), z1)[0].tolist() == [[0.0] * 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    z1, z2 = draw(16, 8).to(dtype), draw(16, 8, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = focal_nt_xent(z1, z2, temperature=0.02)
    assert torch.equal(half, focal_nt_xent(z1.float(), z2.float(), temperature=0.02))


@pytest.mark.parametrize("gamma", [-1.0, math.nan])
def test_it_rejects_a_negative_focus(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must not be negative, got"):
        focal_nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=0.2, gamma=gamma)


def test_it_rejects_views_of_different_shape_and_a_temperature_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 5\)"):
        focal_nt_xent(torch.ones(4, 3), torch.ones(4, 5), temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        focal_nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=0.0)


def part(z1: Tensor, z2: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, ...]:
    """Loss part and gradient of this process's rows, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    a, b = z1[local].clone().requires_grad_(), z2[local].clone().requires_grad_()
    loss = weighted_mean(focal_nt_xent(a, b, temperature=0.2, gather=gather), weights[local])
    gradients = torch.autograd.grad(loss, (a, b))
    return loss.detach(), *(gradient / dist.get_world_size() for gradient in gradients)


@pytest.mark.parametrize("cuts", [[0, 7, 12], [0, 1, 12]])
def test_it_does_not_depend_on_the_number_of_processes(two_processes, cuts) -> None:
    z1, z2 = draw(12, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    weights = draw(12, seed=2).exp()
    whole = weighted_mean(focal_nt_xent(z1, z2, temperature=0.2), weights)
    gradients = torch.autograd.grad(whole, (z1, z2))
    parts = two_processes(part, z1.detach(), z2.detach(), weights, cuts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach())
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([p[view + 1] for p in parts]), gradients[view])
