import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.distributed import gather
from sslgh.functional import sigreg

WEIGHTS = torch.tensor([2.0, 1, 3, 1, 0, 2], dtype=torch.float64)
REPEATED = torch.tensor([0, 0, 1, 2, 2, 2, 3, 5, 5])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(d: int, a: int) -> Tensor:
    return F.normalize(draw(d, a, seed=3), dim=0)


def statistic(z: list[list[list[float]]], directions: list[list[float]]) -> float:
    """The authors' minimal example in loops: 17 points in [0, 3], doubled, times N."""
    points = [3 * k / 16 for k in range(17)]
    values = []
    for view in z:
        for column in range(len(directions[0])):
            integral = 0.0
            for k, t in enumerate(points):
                mean = 0j
                for row in view:
                    s = sum(x * line[column] for x, line in zip(row, directions, strict=True))
                    mean += cmath.exp(1j * t * s) / len(view)
                inner = abs(mean - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)
                integral += inner * (3 / 16) * (1 if k in (0, 16) else 2)
            values.append(len(view) * integral)
    return sum(values) / len(values)


@pytest.mark.parametrize(("v", "n", "d", "a"), [(1, 5, 3, 4), (3, 4, 2, 3), (2, 1, 1, 1)])
def test_sigreg_equals_the_authors_example_in_loops(v: int, n: int, d: int, a: int) -> None:
    z, directions = draw(v, n, d), unit(d, a)
    expected = statistic(z.tolist(), directions.tolist())
    torch.testing.assert_close(sigreg(z, directions), torch.tensor(expected, dtype=z.dtype))


def test_sigreg_has_the_gradient_of_the_loops() -> None:
    z, directions = draw(2, 3, 2).requires_grad_(), unit(2, 3)
    (found,) = torch.autograd.grad(sigreg(z, directions), z)
    rows, step = z.tolist(), 1e-6
    for view in range(2):
        for image in range(3):
            for axis in range(2):
                ends = []
                for sign in (1, -1):
                    rows[view][image][axis] += sign * step
                    ends.append(statistic(rows, directions.tolist()))
                    rows[view][image][axis] -= sign * step
                slope = (ends[0] - ends[1]) / (2 * step)
                assert found[view, image, axis].item() == pytest.approx(slope, abs=1e-7)


def test_sigreg_of_the_origin_is_the_integral_of_the_gap_to_one() -> None:
    """(1 - phi)^2 phi over the line, times N; what lies beyond 3 is less than phi's tails."""
    whole = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    tails = math.sqrt(2 * math.pi) * math.erfc(3 / math.sqrt(2))
    found = sigreg(torch.zeros(2, 7, 4, dtype=torch.float64), unit(4, 5)).item()
    assert 7 * (whole - tails) - 1e-2 < found < 7 * whole


def test_sigreg_of_a_gaussian_does_not_grow_with_the_batch_and_of_others_it_does() -> None:
    """Under N(0, I) n |mean - phi|^2 has the expectation 1 - phi^2, whatever n."""
    directions = unit(8, 64)
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for n in (200, 800):
        z = draw(40, n, 8)
        assert sigreg(z, directions).item() == pytest.approx(expected, rel=0.1)
        doubled = torch.cat([z[..., :4], z[..., :4]], dim=2)
        for other in (0.5 * z, 2 * z, z + 1, doubled):
            assert sigreg(other, directions) > 2e-3 * n + expected


def test_sigreg_knows_no_axes_if_the_directions_turn_along() -> None:
    z, directions = draw(2, 6, 5), unit(5, 8)
    rotation, _ = torch.linalg.qr(draw(5, 5, seed=7))
    turned = sigreg(z @ rotation, rotation.T @ directions)
    torch.testing.assert_close(turned, sigreg(z, directions))
    assert (sigreg(z @ rotation, directions) - sigreg(z, directions)).abs() > 1e-3


def test_sigreg_takes_each_view_by_itself_in_any_order_of_images_and_directions() -> None:
    z, directions = draw(3, 6, 4), unit(4, 8)
    each = torch.stack([sigreg(view[None], directions) for view in z])
    torch.testing.assert_close(sigreg(z, directions), each.mean())
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = sigreg(z.flip(0)[:, order], directions.flip(1), weights=WEIGHTS[order])
    torch.testing.assert_close(shuffled, sigreg(z, directions, weights=WEIGHTS))


def test_sigreg_weights_count_like_repeated_images() -> None:
    z, directions = draw(2, 6, 4).requires_grad_(), unit(4, 8)
    weighted = sigreg(z, directions, weights=WEIGHTS)
    repeated = sigreg(z[:, REPEATED], directions)
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=0)
    local = torch.autograd.grad(weighted, z)
    torch.testing.assert_close(local, torch.autograd.grad(repeated, z))


def test_sigreg_gives_no_gradient_to_images_of_weight_zero_nor_to_weights_and_directions() -> None:
    z = draw(2, 6, 4).requires_grad_()
    weights, directions = WEIGHTS.clone().requires_grad_(), unit(4, 8)
    sigreg(z, directions, weights=weights).backward()
    assert (z.grad[:, 4] == 0).all()
    assert (z.grad[:, :4] != 0).all()
    assert weights.grad is None


def test_sigreg_is_zero_and_finite_without_any_weight() -> None:
    z = draw(2, 6, 4).requires_grad_()
    loss = sigreg(z, unit(4, 8), weights=torch.zeros(6))
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sigreg_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    z, directions = 3 * draw(2, 16, 8).to(dtype), unit(8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = sigreg(z, directions)
    assert half.dtype == torch.float32
    assert torch.equal(half, sigreg(z.float(), directions))


def test_sigreg_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"must share D, got \(2, 4, 3\) and \(5, 8\)"):
        sigreg(torch.ones(2, 4, 3), torch.ones(5, 8))
    with pytest.raises(ValueError, match=r"must share D, got \(4, 3\) and \(3, 8\)"):
        sigreg(torch.ones(4, 3), torch.ones(3, 8))
    with pytest.raises(ValueError, match=r"weights must have shape \(4,\), .* got \(3,\)"):
        sigreg(torch.ones(2, 4, 3), torch.ones(3, 8), weights=torch.ones(3))


def part(z: Tensor, weights: Tensor, cuts: list[int]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of this rank's images, as DDP would average them."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    own = z[:, local].clone().requires_grad_()
    loss = sigreg(own, unit(z.shape[2], 8), weights=weights[local], gather=gather)
    (gradient,) = torch.autograd.grad(loss, own)
    return loss.detach(), gradient / dist.get_world_size()


def test_sigreg_does_not_depend_on_the_number_of_processes(two_processes, three_processes) -> None:
    z, weights = draw(3, 12, 5).requires_grad_(), draw(12, seed=2).exp()
    whole = sigreg(z, unit(5, 8), weights=weights)
    (gradient,) = torch.autograd.grad(whole, z)
    for run, cuts in (
        (two_processes, [0, 6, 12]),
        (two_processes, [0, 1, 12]),
        (three_processes, [0, 5, 9, 12]),
    ):
        parts = run(part, z.detach(), weights, cuts)
        for loss, _ in parts:
            torch.testing.assert_close(loss, whole.detach())
        torch.testing.assert_close(torch.cat([own for _, own in parts], dim=1), gradient)
