import math

import pytest
import torch

from sslgh.functional import simplex_etf, uniform_frame


def cosines(vertices: torch.Tensor) -> torch.Tensor:
    gram = vertices.double() @ vertices.double().T
    return gram[~torch.eye(len(vertices), dtype=torch.bool)]


@pytest.mark.parametrize(
    ("k", "d"), [(2, 1), (3, 2), (10, 128), (100, 128), (128, 128), (129, 128)]
)
def test_simplex_has_unit_rows_and_equal_cosines_of_minus_one_over_k_minus_one(k, d) -> None:
    vertices = simplex_etf(k, d)
    assert vertices.shape == (k, d)
    assert vertices.dtype == torch.float32
    assert (vertices.double().norm(dim=1) - 1).abs().max() < 1e-6
    assert (cosines(vertices) + 1 / (k - 1)).abs().max() < 1e-6
    assert vertices.double().sum(0).abs().max() < 1e-5


def test_simplex_follows_its_generator_and_otherwise_differs() -> None:
    first, second, other = (
        simplex_etf(5, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=0.1)


def test_simplex_that_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="simplex of 130 vectors does not fit into 128"):
        simplex_etf(130, 128)


@pytest.mark.parametrize(("k", "d"), [(1, 4), (0, 4)])
def test_fewer_than_two_vertices_are_refused(k, d) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        uniform_frame(k, d)


@pytest.mark.parametrize(("k", "d"), [(2, 2), (9, 8), (100, 128)])
def test_uniform_frame_is_the_simplex_where_that_fits(k, d) -> None:
    assert (cosines(uniform_frame(k, d)) + 1 / (k - 1)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("k", "d"), [(6, 4), (8, 4), (7, 4), (130, 128), (200, 128), (256, 128), (4, 2)]
)
def test_uniform_frame_reaches_rankins_optimum_of_zero(k, d) -> None:
    vertices = uniform_frame(k, d)
    assert abs(float(cosines(vertices).max())) < 1e-6
    assert (vertices.double().norm(dim=1) - 1).abs().max() < 1e-6
    assert vertices.double().sum(0).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("k", "d", "best"),
    [
        (5, 2, math.cos(2 * math.pi / 5)),
        (9, 2, math.cos(2 * math.pi / 9)),
        (12, 3, 1 / math.sqrt(5)),  # the icosahedron
    ],
)
def test_uniform_frame_finds_known_optimal_packings(k, d, best) -> None:
    found = float(cosines(uniform_frame(k, d, generator=torch.Generator().manual_seed(0))).max())
    assert best - 1e-6 < found < best + 2e-3


def test_uniform_frame_beyond_twice_the_dimension_beats_random_directions_by_far() -> None:
    random = torch.nn.functional.normalize(
        torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    )
    frame = uniform_frame(100, 20, generator=torch.Generator().manual_seed(0))
    welch = math.sqrt((100 - 20) / (20 * 99))  # bounds the largest ABSOLUTE cosine from below
    assert float(cosines(frame).max()) < 0.3 * float(cosines(random).max())
    assert float(cosines(frame).max()) < welch


def test_uniform_frame_works_without_a_gradient_and_leaves_none() -> None:
    with torch.no_grad():
        assert not uniform_frame(9, 3).requires_grad
