import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from sslgh.functional import simplex_etf, sinkhorn, vertex_scores

LONG_TAIL = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64)


def random_scores(n: int = 60, k: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(n, k, dtype=torch.float64, generator=generator)
    )


def clustered_scores(
    seed: int = 0, noise: float = 0.1, dtype=torch.float64
) -> tuple[Tensor, Tensor]:
    """Embeddings around vertices in long-tailed proportions, where Sinkhorn converges slowly."""
    generator = torch.Generator().manual_seed(seed)
    vertices = simplex_etf(5, 8, generator=generator).to(dtype)
    labels = torch.multinomial(LONG_TAIL, 200, replacement=True, generator=generator)
    z = vertices[labels] + noise * torch.randn(200, 8, generator=generator, dtype=dtype)
    return vertex_scores(z, vertices), labels


def brute_force(scores: Tensor, prior: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Matrix scaling as in the official code, in float64: column update, then row update."""
    n, k = scores.shape
    kernel = [[np.exp(float(s) / epsilon) for s in row] for row in scores]
    share = [float(p) / float(prior.sum()) for p in prior]
    columns, rows = [1 / n] * k, [1 / n] * n
    for _ in range(iterations):
        columns = [
            share[j] / sum(kernel[i][j] * rows[i] for i in range(n)) if share[j] else 0.0
            for j in range(k)
        ]
        rows = [1 / n / sum(kernel[i][j] * columns[j] for j in range(k)) for i in range(n)]
    plan = [[n * rows[i] * kernel[i][j] * columns[j] for j in range(k)] for i in range(n)]
    return torch.tensor(plan, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 2, 7, 20, 21, 45])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_equals_matrix_scaling_after_the_same_number_of_iterations(
    iterations, epsilon
) -> None:
    scores, _ = clustered_scores()
    scores = scores[:40]
    expected = brute_force(scores, LONG_TAIL, epsilon, iterations)
    found = sinkhorn(scores, LONG_TAIL, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_sinkhorn_in_float32_is_that_of_float64() -> None:
    scores, _ = clustered_scores()
    expected = sinkhorn(scores, LONG_TAIL)
    torch.testing.assert_close(
        sinkhorn(scores.float(), LONG_TAIL.float()).double(), expected, rtol=1e-3, atol=1e-5
    )


def test_sinkhorn_equals_pot() -> None:
    scores = random_scores()
    marginals = np.full(60, 1 / 60), LONG_TAIL.numpy()
    plan = ot.bregman.sinkhorn_log(
        *marginals, -scores.numpy(), 0.05, numItermax=5000, stopThr=1e-12
    )
    torch.testing.assert_close(
        sinkhorn(scores, LONG_TAIL, iterations=5000),
        60 * torch.from_numpy(plan),
        rtol=1e-5,
        atol=1e-8,
    )


def test_sinkhorn_rows_sum_to_one_and_columns_to_the_prior() -> None:
    plan = sinkhorn(random_scores(), LONG_TAIL)
    torch.testing.assert_close(plan.sum(1), torch.ones(60, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), 60 * LONG_TAIL)


def test_sinkhorn_recovers_clusters_in_the_proportions_of_the_prior() -> None:
    scores, labels = clustered_scores()
    shares = torch.bincount(labels, minlength=5) / 200
    assert (sinkhorn(scores, shares).argmax(1) == labels).float().mean() > 0.98


def test_sinkhorn_with_a_far_wrong_prior_moves_samples() -> None:
    scores, _ = clustered_scores()
    plan = sinkhorn(scores, LONG_TAIL.flip(0), iterations=3000)
    torch.testing.assert_close(plan.sum(0) / 200, LONG_TAIL.flip(0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_gives_nothing_to_a_class_without_share() -> None:
    prior = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    plan = sinkhorn(random_scores(), prior)
    assert (plan[:, prior == 0] == 0).all()
    torch.testing.assert_close(plan.sum(0), 60 * prior)


def test_sinkhorn_ignores_the_scale_of_the_prior_and_shifts_of_rows_and_columns() -> None:
    scores = random_scores()
    rows, columns = torch.linspace(-3, 3, 60)[:, None], torch.linspace(-1, 1, 5)
    expected = sinkhorn(scores, LONG_TAIL, iterations=2000)
    found = sinkhorn(scores + rows + columns, 17 * LONG_TAIL, iterations=2000)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("scale", "epsilon"), [(1.0, 1e-4), (1e4, 0.05), (1.0, 1e3)])
def test_sinkhorn_never_overflows(scale, epsilon) -> None:
    plan = sinkhorn(scale * random_scores().float(), LONG_TAIL.float(), epsilon=epsilon)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(1), torch.ones(60))


def test_sinkhorn_of_tiny_epsilon_is_still_the_log_domain_plan() -> None:
    scores = random_scores(30)
    plan = ot.bregman.sinkhorn_log(
        np.full(30, 1 / 30),
        LONG_TAIL.numpy(),
        -scores.numpy(),
        2e-3,
        numItermax=20000,
        stopThr=0,
        warn=False,
    )
    found = sinkhorn(scores.float(), LONG_TAIL.float(), epsilon=2e-3, iterations=20000)
    torch.testing.assert_close(found.double(), 30 * torch.from_numpy(plan), rtol=0, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sinkhorn_widens_half_precision(dtype) -> None:
    scores = random_scores().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        plan = sinkhorn(scores, LONG_TAIL.float())
    assert torch.equal(plan, sinkhorn(scores.float(), LONG_TAIL.float()))


def test_sinkhorn_with_a_tolerance_stops_early_and_within_it() -> None:
    scores, _ = clustered_scores(noise=0.05)
    plan = sinkhorn(scores, LONG_TAIL, tolerance=1e-2, iterations=5000)
    error = float((plan.sum(0) / 200 - LONG_TAIL).abs().sum())
    assert 1e-6 < error < 1e-2


def test_sinkhorn_solves_a_stack_of_problems_as_each_alone() -> None:
    stack = torch.stack([random_scores(seed=1), random_scores(seed=2)])
    alone = torch.stack([sinkhorn(scores, LONG_TAIL) for scores in stack])
    torch.testing.assert_close(sinkhorn(stack, LONG_TAIL), alone)


def test_sinkhorn_gives_no_gradient() -> None:
    assert not sinkhorn(random_scores().requires_grad_(), LONG_TAIL).requires_grad


def test_sinkhorn_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"prior must have shape \(5,\)"):
        sinkhorn(random_scores(), torch.ones(4))
    with pytest.raises(ValueError, match="epsilon must be positive"):
        sinkhorn(random_scores(), LONG_TAIL, epsilon=0)
    with pytest.raises(ValueError, match="iterations must be positive"):
        sinkhorn(random_scores(), LONG_TAIL, iterations=0)
    with pytest.raises(ValueError, match="scores must be"):
        sinkhorn(torch.ones(5), LONG_TAIL)
