"""What all losses over a contrast set must keep; their values are tested file by file."""

import pytest
import torch
from torch import Tensor

from sslgh.distributed import gather as gather_processes
from sslgh.distributed import weighted_mean
from sslgh.functional import (
    Gather,
    balanced_contrastive,
    embedding_hinge,
    embedding_margin,
    embedding_pull,
    has_mate,
    rebalanced_contrastive,
    supervised_contrastive,
)

PRIOR = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)
LOSSES = ("supcon", "bcl", "rcl", "margin", "hinge", "pull")
BY_PRIOR = ("rcl", "margin", "hinge", "pull")


def loss(
    name: str,
    z: Tensor,
    target: Tensor,
    proxies: Tensor,
    *,
    prior: Tensor = PRIOR,
    t: float = 0.2,
    gather: Gather | None = None,
) -> Tensor:
    """One of the losses on z (N, V, D); those without views take the first."""
    if name == "supcon":
        return supervised_contrastive(z, target, temperature=t, gather=gather)
    if name == "bcl":
        return balanced_contrastive(z, target, proxies, temperature=t, gather=gather)
    if name == "rcl":
        return rebalanced_contrastive(z, target, proxies, prior, temperature=t, gather=gather)
    z = z[:, 0]
    if name == "margin":
        return embedding_margin(
            z, target, prior, tau=1.0, temperature=t, proxies=proxies, gather=gather
        )
    pair = {"hinge": embedding_hinge, "pull": embedding_pull}[name]
    return pair(z, target, prior, tau=1.0, proxies=proxies, gather=gather)


def problem(n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, 6, dtype=torch.float64, generator=generator).requires_grad_()
    proxies = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    return z, torch.randint(4, (n,), generator=generator), proxies


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_ignores_the_length_of_embeddings_and_proxies(name) -> None:
    z, target, proxies = problem()
    torch.testing.assert_close(
        loss(name, z * torch.arange(1, 13)[:, None, None], target, 7 * proxies),
        loss(name, z, target, proxies),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_moves_with_images_and_with_a_renumbering_of_the_classes(name) -> None:
    z, target, proxies = problem()
    expected = loss(name, z, target, proxies)
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(name, z[rows], target[rows], proxies), expected[rows])
    torch.testing.assert_close(
        loss(name, z, order.argsort()[target], proxies[order], prior=PRIOR[order]), expected
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_loses_nothing_to_half_precision(name, dtype) -> None:
    z, target, proxies = problem()
    z, proxies = z.detach().to(dtype), proxies.detach().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(name, z, target, proxies, prior=PRIOR.float())
    exact = loss(name, z.float(), target, proxies.float(), prior=PRIOR.float())
    assert half.dtype == torch.float32
    assert torch.equal(half, exact)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_stays_finite_where_exp_of_the_logits_would_not(name) -> None:
    z, target, proxies = problem()
    exact = loss(name, z, target, proxies, t=1e-4)
    single, anchors = z.detach().float().requires_grad_(), proxies.detach().float()
    found = loss(name, single, target, anchors, prior=PRIOR.float(), t=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), single)
    assert exact.dtype == torch.float64
    assert gradient.isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", BY_PRIOR)
def test_a_class_without_share_leaves_though_it_has_a_proxy(name) -> None:
    z, _, proxies = problem()
    target, kept = torch.arange(12) % 3, torch.tensor([0, 1, 3])
    prior = torch.tensor([0.6, 0.3, 0.0, 0.1], dtype=torch.float64)
    found = loss(name, z, kept[target], proxies, prior=prior)
    expected = loss(name, z, target, proxies[kept], prior=prior[kept])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", BY_PRIOR)
def test_the_gradient_survives_where_every_rival_is_without_share(name) -> None:
    z, _, proxies = problem()
    prior = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = loss(name, z, torch.zeros(12, dtype=torch.int64), proxies, prior=prior)
    gradients = torch.autograd.grad(found.sum(), (z, proxies))
    assert found.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("function", [embedding_hinge, embedding_pull])
def test_an_anchor_without_a_mate_gives_zero_and_no_gradient(function) -> None:
    z = problem(4)[0]
    found = function(z[:, 0], torch.tensor([0, 0, 1, 2]), PRIOR, tau=1.0)
    (gradient,) = torch.autograd.grad(found[2:].sum(), z, retain_graph=True)
    assert (found > 0).tolist() == [True, True, False, False]
    assert (gradient == 0).all()


@pytest.mark.parametrize("target", [[0], [0, 1, 2], [1, 1, 1]])
@pytest.mark.parametrize("function", [embedding_hinge, embedding_pull])
def test_a_batch_without_mates_or_rivals_has_a_finite_gradient(function, target) -> None:
    z = problem(len(target))[0]
    found = function(z[:, 0], torch.tensor(target), PRIOR, tau=1.0)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.isfinite().all()
    if len(set(target)) == len(target) or function is embedding_hinge:
        assert (found == 0).all()


def part_of_a_loss(
    name: str, z: Tensor, target: Tensor, proxies: Tensor, cuts: list[int]
) -> tuple[Tensor, ...]:
    """Loss part and gradients of this process, as DDP would average them, and who has a mate."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    rank, size = dist.get_rank(), dist.get_world_size()
    local = slice(cuts[rank], cuts[rank + 1])
    z, proxies = z[local].clone().requires_grad_(), proxies.clone().requires_grad_()
    mates = has_mate(target[local], gather=gather_processes)
    each = loss(name, z, target[local], proxies, gather=gather_processes)
    mean = weighted_mean(each, mates) + 0 * proxies.sum()
    mean.backward()
    assert z.grad is not None
    assert proxies.grad is not None
    return mean.detach(), z.grad / size, proxies.grad / size, mates


@pytest.mark.parametrize("cuts", [[0, 7, 12], [0, 1, 12]])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_does_not_depend_on_the_number_of_processes(two_processes, name, cuts) -> None:
    z, _, proxies = problem()
    target = torch.tensor([0, 0, 1, 0, 2, 0, 0, 1, 0, 3, 0, 1])
    whole = weighted_mean(loss(name, z, target, proxies), has_mate(target)) + 0 * proxies.sum()
    gradients = torch.autograd.grad(whole, (z, proxies))
    parts = two_processes(part_of_a_loss, name, z.detach(), target, proxies.detach(), cuts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradients[0])
    torch.testing.assert_close(parts[0][2] + parts[1][2], gradients[1])
    assert torch.cat([part[3] for part in parts]).equal(has_mate(target))
