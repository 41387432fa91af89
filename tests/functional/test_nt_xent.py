import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import nt_xent


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def equation_one(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR eq. 1 in loops, averaged over the two anchors of each image."""
    n = len(z1)
    z = [*z1, *z2]

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return a @ b / (a.norm() * b.norm()) / temperature

    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [similarity(z[i], z[k]).exp() for k in range(2 * n) if k != i]
        losses.append(-(similarity(z[i], z[j]).exp() / sum(others)).log())
    return torch.stack([(losses[i] + losses[i + n]) / 2 for i in range(n)])


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (5, 4, 0.1), (7, 16, 0.2)])
def test_nt_xent_equals_the_equation_of_the_paper(n: int, d: int, temperature: float) -> None:
    z1, z2 = draw(n, d), draw(n, d, seed=1)
    expected = equation_one(z1, z2, temperature)
    torch.testing.assert_close(nt_xent(z1, z2, temperature=temperature), expected)


def test_nt_xent_of_indistinguishable_images_is_log_of_the_candidates() -> None:
    same = torch.ones(6, 4)
    torch.testing.assert_close(
        nt_xent(same, same, temperature=0.07), torch.full((6,), math.log(11))
    )


def test_nt_xent_has_the_value_and_gradient_of_lightly() -> None:
    z1, z2 = draw(32, 16).requires_grad_(), draw(32, 16, seed=1).requires_grad_()
    ours = nt_xent(z1, z2, temperature=0.2).mean()
    local = torch.autograd.grad(ours, (z1, z2))
    theirs = NTXentLoss(temperature=0.2)(z1, z2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(local, torch.autograd.grad(theirs, (z1, z2)))


def test_nt_xent_gradient_agrees_with_finite_differences() -> None:
    z1, z2 = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (z1, z2))


def test_nt_xent_ignores_the_length_of_the_embeddings() -> None:
    z1, z2, lengths = draw(8, 5), draw(8, 5, seed=1), draw(8, 1, seed=2).exp()
    torch.testing.assert_close(
        nt_xent(z1 * lengths, z2 * 3, temperature=0.2), nt_xent(z1, z2, temperature=0.2)
    )


def test_nt_xent_does_not_care_which_view_is_first() -> None:
    z1, z2 = draw(8, 5), draw(8, 5, seed=1)
    torch.testing.assert_close(nt_xent(z1, z2, temperature=0.2), nt_xent(z2, z1, temperature=0.2))


def test_nt_xent_moves_with_a_permutation_of_the_images() -> None:
    z1, z2 = draw(8, 5), draw(8, 5, seed=1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    moved = nt_xent(z1[order], z2[order], temperature=0.2)
    torch.testing.assert_close(moved, nt_xent(z1, z2, temperature=0.2)[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    z1, z2 = draw(16, 8).to(dtype), draw(16, 8, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = nt_xent(z1, z2, temperature=0.02)
    torch.testing.assert_close(
        half, nt_xent(z1.float(), z2.float(), temperature=0.02), rtol=0, atol=0
    )


def test_nt_xent_stays_finite_where_exp_of_the_logits_would_not() -> None:
    z = torch.eye(4, dtype=torch.float32)
    z1, z2 = z.clone().requires_grad_(), -z
    loss = nt_xent(z1, z2, temperature=1e-3)
    torch.testing.assert_close(loss, torch.full((4,), 1000 + math.log(4 + 2)), rtol=1e-3, atol=0)
    loss.sum().backward()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


def test_nt_xent_rejects_views_of_different_shape_and_names_both() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 5\)"):
        nt_xent(torch.ones(4, 3), torch.ones(4, 5), temperature=0.1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_nt_xent_rejects_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=temperature)


def part_of_nt_xent(z1: Tensor, z2: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, ...]:
    """Loss part and gradient of this process's rows, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    rank = dist.get_rank()
    local = slice(cuts[rank], cuts[rank + 1])
    a, b = z1[local].clone().requires_grad_(), z2[local].clone().requires_grad_()
    loss = weighted_mean(nt_xent(a, b, temperature=0.2, gather=gather), weights[local])
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    return loss.detach(), a.grad / dist.get_world_size(), b.grad / dist.get_world_size()


@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 7, 12], [0, 1, 12]])
def test_nt_xent_does_not_depend_on_the_number_of_processes(two_processes, cuts) -> None:
    z1, z2 = draw(12, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    weights = draw(12, seed=2).exp()
    whole = weighted_mean(nt_xent(z1, z2, temperature=0.2), weights)
    gradients = torch.autograd.grad(whole, (z1, z2))
    parts = two_processes(part_of_nt_xent, z1.detach(), z2.detach(), weights, cuts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach())
    for view in (0, 1):
        stacked = torch.cat([part[view + 1] for part in parts])
        torch.testing.assert_close(stacked, gradients[view])
