import math

import pytest
import torch
from lightly.loss import SwaVLoss
from torch import Tensor

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import sinkhorn, swapped_assignment


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Cosines of random directions."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


def public_code(scores: Tensor, queue: Tensor | None, temperature: float) -> Tensor:
    """Swapped prediction image by image, with codes by the public code's three iterations."""
    views, n, k = scores.shape
    losses = []
    for image in range(n):
        pairs = []
        for i in (0, 1):
            batch = scores[i] if queue is None else torch.cat([scores[i], queue[i]])
            code = (batch.detach() / 0.05).exp()
            for _ in range(3):
                code = code / code.sum(0) / k
                code = code / code.sum(1, keepdim=True) / len(batch)
            code = (code / code.sum(1, keepdim=True))[image]
            for v in range(views):
                if v != i:
                    exponentials = (scores[v, image] / temperature).exp()
                    log_predictions = (exponentials / exponentials.sum()).log()
                    pairs.append(-sum(code[j] * log_predictions[j] for j in range(k)))
        losses.append(sum(pairs) / len(pairs))
    return torch.stack(losses)


@pytest.mark.parametrize(("views", "queued"), [(2, 0), (2, 5), (4, 0), (3, 7)])
def test_swapped_assignment_equals_the_public_code_written_out(views: int, queued: int) -> None:
    scores = draw(views, 6, 4)
    queue = draw(2, queued, 4, seed=1) if queued else None
    found = swapped_assignment(scores, temperature=0.1, queue=queue)
    torch.testing.assert_close(found, public_code(scores, queue, 0.1))


@pytest.mark.parametrize(("views", "queued"), [(2, 0), (2, 9), (5, 0), (4, 9)])
def test_swapped_assignment_has_the_value_and_gradient_of_lightly(views: int, queued: int) -> None:
    scores = draw(views, 16, 5).requires_grad_()
    queue = draw(2, queued, 5, seed=1) if queued else None
    ours = swapped_assignment(scores, temperature=0.2, epsilon=0.1, queue=queue).mean()
    criterion = SwaVLoss(temperature=0.2, sinkhorn_epsilon=0.1)
    theirs = criterion(list(scores[:2]), list(scores[2:]), None if queue is None else list(queue))
    torch.testing.assert_close(ours[None], theirs)
    local = torch.autograd.grad(ours, scores)
    torch.testing.assert_close(local, torch.autograd.grad(theirs, scores))


def test_swapped_assignment_of_sure_agreeing_views_in_equal_parts_is_nothing() -> None:
    scores = torch.eye(4).repeat(2, 3, 1)
    assert swapped_assignment(scores, temperature=0.02).max() < 1e-6


def test_swapped_assignment_of_views_that_contradict_each_other_is_the_gap() -> None:
    scores = torch.stack([torch.eye(2), torch.eye(2).flip(1)])
    found = swapped_assignment(scores, temperature=0.05)
    torch.testing.assert_close(found, torch.full((2,), 20.0))


def test_swapped_assignment_splits_equally_what_all_prefer_alike() -> None:
    """All images prefer prototype 0 by 1, which equal shares cannot follow: half each."""
    scores = torch.tensor([1.0, 0.0]).expand(2, 6, 2)
    rest = math.log(1 + math.exp(-10))
    torch.testing.assert_close(
        swapped_assignment(scores, temperature=0.1), torch.full((6,), rest + 10 / 2)
    )


def test_swapped_assignment_ignores_the_order_of_prototypes_and_moves_with_the_images() -> None:
    scores = draw(3, 6, 4)
    expected = swapped_assignment(scores, temperature=0.1)
    prototypes, images = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 5, 0, 2, 3])
    torch.testing.assert_close(
        swapped_assignment(scores[:, :, prototypes], temperature=0.1), expected
    )
    torch.testing.assert_close(
        swapped_assignment(scores[:, images], temperature=0.1), expected[images]
    )
    exchanged = scores[torch.tensor([1, 0, 2])]
    torch.testing.assert_close(swapped_assignment(exchanged, temperature=0.1), expected)


def test_swapped_assignment_gives_no_gradient_to_codes_nor_to_the_queue() -> None:
    """The gradient of cross-entropy with codes held still: predictions minus codes."""
    scores, queue = draw(2, 6, 4).requires_grad_(), draw(2, 5, 4, seed=1).requires_grad_()
    swapped_assignment(scores, temperature=0.1, queue=queue).sum().backward()
    assert queue.grad is None
    with torch.no_grad():
        batch = torch.cat([scores, queue], dim=1)
        codes = sinkhorn(batch, torch.ones(4), iterations=3)[:, :6].flip(0)
        expected = ((scores / 0.1).softmax(2) - codes) / 0.1 / 2
    torch.testing.assert_close(scores.grad, expected)


def test_swapped_assignment_does_not_overflow_where_exp_of_the_scores_would() -> None:
    scores = 1e3 * draw(2, 6, 4).float().requires_grad_()
    (gradient,) = torch.autograd.grad(swapped_assignment(scores, temperature=0.01).sum(), scores)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_swapped_assignment_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    scores = draw(3, 6, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = swapped_assignment(scores, temperature=0.1)
    assert torch.equal(half, swapped_assignment(scores.float(), temperature=0.1))


def test_swapped_assignment_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"scores must be \(V, N, K\) .* got \(1, 6, 4\)"):
        swapped_assignment(draw(1, 6, 4), temperature=0.1)
    with pytest.raises(ValueError, match=r"queue must be \(2, Q, 4\), got \(2, 5, 3\)"):
        swapped_assignment(draw(2, 6, 4), temperature=0.1, queue=draw(2, 5, 3))
    with pytest.raises(ValueError, match="temperature must be positive"):
        swapped_assignment(draw(2, 6, 4), temperature=0.0)


def part(scores: Tensor, queue: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of this process's images, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    mine = scores[:, local].clone().requires_grad_()
    per_sample = swapped_assignment(mine, temperature=0.1, queue=queue, gather=gather)
    loss = weighted_mean(per_sample, weights[local])
    (gradient,) = torch.autograd.grad(loss, mine)
    return loss.detach(), gradient / dist.get_world_size()


@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 7, 12], [0, 1, 12]])
def test_swapped_assignment_does_not_depend_on_the_number_of_processes(two_processes, cuts) -> None:
    scores, queue = draw(4, 12, 5).requires_grad_(), draw(2, 20, 5, seed=1)
    weights = draw(12, seed=2).exp()
    whole = weighted_mean(swapped_assignment(scores, temperature=0.1, queue=queue), weights)
    (gradient,) = torch.autograd.grad(whole, scores)
    parts = two_processes(part, scores.detach(), queue, weights, cuts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach())
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]], dim=1), gradient)
