import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import info_nce, queued_info_nce


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_loops(queries: Tensor, keys: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    """Each query's own key against it and the negatives; those given, or the other keys."""

    def score(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / (a.norm() * b.norm()) / temperature).exp()

    losses = []
    for i, query in enumerate(queries):
        others = negatives or [key for j, key in enumerate(keys) if j != i]
        local = score(query, keys[i])
        losses.append(-(local / (local + sum(score(query, other) for other in others))).log())
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_has_the_value_and_gradient_of_the_equation(temperature) -> None:
    q, k = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    losses = info_nce(q, k, temperature=temperature), in_loops(q, k, [], temperature)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), (q, k)) for loss in losses))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_queued_info_nce_has_the_value_and_gradient_of_the_equation(temperature) -> None:
    q, k = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    queue = F.normalize(draw(9, 4, seed=2))
    losses = (
        queued_info_nce(q, k, queue, temperature=temperature),
        in_loops(q, k, list(queue), temperature),
    )
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), (q, k)) for loss in losses))


def test_queued_info_nce_has_the_value_and_gradient_of_lightly() -> None:
    q, k = draw(8, 16).requires_grad_(), draw(8, 16, seed=1).requires_grad_()
    lightly = NTXentLoss(temperature=0.2, memory_bank_size=(40, 16)).double()
    queue = lightly.memory_bank.bank.clone()
    ours = queued_info_nce(q, k, queue, temperature=0.2).mean()
    theirs = lightly(q, k)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (q, k)) for loss in (ours, theirs)))


def test_indistinguishable_keys_cost_the_log_of_the_candidates() -> None:
    same = torch.ones(6, 4)
    torch.testing.assert_close(info_nce(same, same, temperature=0.1), torch.full((6,), math.log(6)))
    found = queued_info_nce(same, same, F.normalize(torch.ones(10, 4)), temperature=0.1)
    torch.testing.assert_close(found, torch.full((6,), math.log(11)))


def test_the_length_of_queries_and_keys_does_not_matter() -> None:
    q, k, lengths = draw(6, 4), draw(6, 4, seed=1), draw(6, 1, seed=2).exp()
    queue = F.normalize(draw(9, 4, seed=3))
    torch.testing.assert_close(
        info_nce(q * lengths, k * 3, temperature=0.2), info_nce(q, k, temperature=0.2)
    )
    torch.testing.assert_close(
        queued_info_nce(q * lengths, k * 3, queue, temperature=0.2),
        queued_info_nce(q, k, queue, temperature=0.2),
    )


def test_queries_are_not_compared_with_each_other() -> None:
    """A query's loss stays as it is, whatever the others are."""
    q, k = draw(6, 4), draw(6, 4, seed=1)
    others = torch.cat([q[:1], draw(5, 4, seed=2)])
    found = info_nce(others, k, temperature=0.2)[0]
    torch.testing.assert_close(found, info_nce(q, k, temperature=0.2)[0])


def test_no_gradient_flows_to_the_queue() -> None:
    q, queue = draw(2, 4).requires_grad_(), F.normalize(draw(3, 4)).requires_grad_()
    loss = queued_info_nce(q, draw(2, 4, seed=1), queue, temperature=0.2).sum()
    assert torch.autograd.grad(loss, (q, queue), allow_unused=True)[1] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_is_lost_to_half_precision_inputs(dtype: torch.dtype) -> None:
    q, k = draw(16, 8).to(dtype), draw(16, 8, seed=1).to(dtype)
    queue = F.normalize(draw(32, 8, seed=2)).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = info_nce(q, k, temperature=0.02), queued_info_nce(q, k, queue, temperature=0.02)
    q, k = q.float(), k.float()
    assert torch.equal(half[0], info_nce(q, k, temperature=0.02))
    assert torch.equal(half[1], queued_info_nce(q, k, queue, temperature=0.02))


@pytest.mark.parametrize("sign", [1, -1])
def test_they_stay_finite_and_exact_where_exp_of_the_logits_would_not(sign: int) -> None:
    """Expected: 1,000 + log 2 for impossible keys, and nothing, but not nan, for sure ones."""
    q, rows = torch.eye(4)[:2].requires_grad_(), torch.eye(4)[2:]
    loss = queued_info_nce(q, sign * torch.eye(4)[:2], rows, temperature=1e-3)
    expected = 0.0 if sign == 1 else 1000 + math.log(2)
    torch.testing.assert_close(loss, torch.full((2,), expected))
    batch = info_nce(q, sign * torch.eye(4)[:2], temperature=1e-3)
    torch.testing.assert_close(batch, torch.full((2,), 0.0 if sign == 1 else 1000.0))
    gradient = torch.autograd.grad((loss + batch).sum(), q)[0]
    assert gradient.isfinite().all()


def test_a_key_that_is_found_for_sure_keeps_its_digits_in_float32() -> None:
    q = torch.eye(4)[:2]
    loss = queued_info_nce(q, q, torch.eye(4)[2:], temperature=1 / 30)
    expected = torch.full((2,), math.log1p(2 * math.exp(-30)))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_what_does_not_fit_is_rejected() -> None:
    q = torch.ones(2, 3)
    for call in (info_nce, lambda *a, **k: queued_info_nce(*a, q, **k)):
        with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
            call(q, torch.ones(2, 4), temperature=0.1)
        with pytest.raises(ValueError, match="temperature must be positive"):
            call(q, q, temperature=0.0)
    for queue in (torch.ones(5, 4), torch.ones(0, 3), torch.ones(3)):
        with pytest.raises(ValueError, match=r"the queue must be \(K, 3\) like the queries, got"):
            queued_info_nce(q, q, queue, temperature=0.1)


def part(q: Tensor, k: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, ...]:
    """Loss part and gradient of this process's rows, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    a, b = q[local].clone().requires_grad_(), k[local].clone().requires_grad_()
    loss = weighted_mean(info_nce(a, b, temperature=0.2, gather=gather), weights[local])
    gradients = torch.autograd.grad(loss, (a, b))
    return loss.detach(), *(gradient / dist.get_world_size() for gradient in gradients)


@pytest.mark.parametrize("cuts", [[0, 7, 12], [0, 1, 12]])
def test_info_nce_does_not_depend_on_the_number_of_processes(two_processes, cuts) -> None:
    q, k = draw(12, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    weights = draw(12, seed=2).exp()
    whole = weighted_mean(info_nce(q, k, temperature=0.2), weights)
    gradients = torch.autograd.grad(whole, (q, k))
    parts = two_processes(part, q.detach(), k.detach(), weights, cuts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach())
    for side in (0, 1):
        torch.testing.assert_close(torch.cat([p[side + 1] for p in parts]), gradients[side])
