import math

import pytest
import torch
from lightly.loss import DCLLoss, DCLWLoss
from torch import Tensor

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import decoupled_nt_xent


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_loops(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None) -> Tensor:
    """Eq. 6 of the paper, averaged over the two anchors, with the weights of eq. 7."""
    n, losses = len(z1), []
    u = [[row / row.norm() for row in z] for z in (z1, z2)]
    agreement = [float(u[0][i] @ u[1][i]) for i in range(n)]
    for i in range(n):
        weight = 1.0
        if sigma is not None:
            mean = sum(math.exp(a / sigma) for a in agreement) / n
            weight = 2 - math.exp(agreement[i] / sigma) / mean
        for k in (0, 1):
            negatives = sum(
                (u[k][i] @ u[other][j] / temperature).exp()
                for other in (0, 1)
                for j in range(n)
                if j != i
            )
            losses.append(-weight * (u[0][i] @ u[1][i]) / temperature + negatives.log())
    return torch.stack(losses).view(n, 2).mean(1)


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (5, 4, 0.1)])
def test_decoupled_nt_xent_equals_the_equation_of_the_paper(n, d, temperature, sigma) -> None:
    z1, z2 = draw(n, d), draw(n, d, seed=1)
    found = decoupled_nt_xent(z1, z2, temperature=temperature, sigma=sigma)
    torch.testing.assert_close(found, in_loops(z1, z2, temperature, sigma))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    ("sigma", "loss"), [(None, DCLLoss(temperature=0.2)), (0.7, DCLWLoss(0.2, sigma=0.7))]
)
def test_it_has_the_value_and_gradient_of_lightly(sigma, loss) -> None:
    z1, z2 = draw(32, 16).requires_grad_(), draw(32, 16, seed=1).requires_grad_()
    ours = decoupled_nt_xent(z1, z2, temperature=0.2, sigma=sigma).mean()
    theirs = loss(z1, z2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(f, (z1, z2)) for f in (ours, theirs)))


def test_indistinguishable_images_cost_the_log_of_the_negatives_less_the_positive() -> None:
    same = torch.ones(6, 4)
    found = decoupled_nt_xent(same, same, temperature=0.25)
    torch.testing.assert_close(found, torch.full((6,), math.log(10)))
    apart = torch.eye(4)
    found = decoupled_nt_xent(apart, apart, temperature=0.25)
    torch.testing.assert_close(found, torch.full((4,), math.log(6) - 4))


def test_pairs_that_differ_alike_have_the_weight_one() -> None:
    z = draw(6, 4)
    weighted = decoupled_nt_xent(z, z * 2, temperature=0.2, sigma=0.5)
    torch.testing.assert_close(weighted, decoupled_nt_xent(z, z * 2, temperature=0.2))


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_neither_the_length_of_embeddings_nor_the_order_of_views_matters(sigma) -> None:
    z1, z2, lengths = draw(8, 5), draw(8, 5, seed=1), draw(8, 1, seed=2).exp()
    torch.testing.assert_close(
        decoupled_nt_xent(z2 * 3, z1 * lengths, temperature=0.2, sigma=sigma),
        decoupled_nt_xent(z1, z2, temperature=0.2, sigma=sigma),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    z1, z2 = draw(16, 8).to(dtype), draw(16, 8, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = decoupled_nt_xent(z1, z2, temperature=0.02, sigma=0.01)
    exact = decoupled_nt_xent(z1.float(), z2.float(), temperature=0.02, sigma=0.01)
    assert torch.equal(half, exact)


@pytest.mark.parametrize("sigma", [None, 1e-3])
def test_it_stays_finite_where_exp_of_the_logits_would_not(sigma) -> None:
    z1 = torch.eye(4).requires_grad_()
    loss = decoupled_nt_xent(z1, torch.eye(4), temperature=1e-3, sigma=sigma)
    torch.testing.assert_close(loss, torch.full((4,), math.log(6) - 1000))
    assert torch.autograd.grad(loss.sum(), z1)[0].isfinite().all()


def test_it_rejects_a_single_image_and_settings_that_are_not_positive() -> None:
    one, two = torch.ones(1, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="at least 2 images in a batch, got 1"):
        decoupled_nt_xent(one, one, temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        decoupled_nt_xent(two, two, temperature=0.0)
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        decoupled_nt_xent(two, two, temperature=0.1, sigma=0.0)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(1, 3\)"):
        decoupled_nt_xent(two, one, temperature=0.1)


def part(
    z1: Tensor, z2: Tensor, weights: Tensor, sigma: float | None, cuts: list[int]
) -> tuple[Tensor, ...]:
    """Loss part and gradient of this process's rows, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    a, b = z1[local].clone().requires_grad_(), z2[local].clone().requires_grad_()
    per_sample = decoupled_nt_xent(a, b, temperature=0.2, sigma=sigma, gather=gather)
    loss = weighted_mean(per_sample, weights[local])
    gradients = torch.autograd.grad(loss, (a, b))
    return loss.detach(), *(gradient / dist.get_world_size() for gradient in gradients)


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("cuts", [[0, 7, 12], [0, 1, 12]])
def test_it_does_not_depend_on_the_number_of_processes(two_processes, cuts, sigma) -> None:
    z1, z2 = draw(12, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    weights = draw(12, seed=2).exp()
    whole = weighted_mean(decoupled_nt_xent(z1, z2, temperature=0.2, sigma=sigma), weights)
    gradients = torch.autograd.grad(whole, (z1, z2))
    parts = two_processes(part, z1.detach(), z2.detach(), weights, sigma, cuts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach())
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([p[view + 1] for p in parts]), gradients[view])
