import itertools

import numpy as np
import pytest
import torch
from lightly.loss.hypersphere_loss import HypersphereLoss
from torch.nn.functional import normalize

from sslgh.functional import (
    alignment,
    effective_rank,
    inter_class_uniformity,
    neighborhood_uniformity,
    simplex_etf,
    uniformity,
)


def views(n=12, d=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(n, d, generator=generator, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize("t", [1.0, 2.0, 5.0])
def test_they_are_the_two_terms_of_lightly(t):
    z1, z2 = (z.requires_grad_() for z in views())
    theirs = HypersphereLoss(t=t, lam=1.5, alpha=2.0)(z1, z2)
    ours = alignment(z1, z2) + 1.5 * (uniformity(z1, t=t) + uniformity(z2, t=t)) / 2
    torch.testing.assert_close(ours, theirs)
    expected = torch.autograd.grad(theirs, (z1, z2))
    torch.testing.assert_close(torch.autograd.grad(ours, (z1, z2)), expected)


def test_uniformity_is_a_mean_over_pairs_of_different_images():
    rows = normalize(views()[0])
    potentials = [(-2 * (a - b).square().sum()).exp() for a, b in itertools.combinations(rows, 2)]
    torch.testing.assert_close(uniformity(rows), torch.stack(potentials).mean().log())


def test_opposite_points_are_the_far_end_of_both():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert alignment(z, -z).item() == 4
    assert uniformity(z).item() == -8


def test_one_point_is_the_near_end_of_both():
    z = torch.ones(4, 4)
    assert alignment(z, 2 * z).item() == 0
    assert uniformity(z).item() == pytest.approx(0, abs=1e-6)


def test_a_sphere_of_many_dimensions_comes_near_minus_four():
    generator = torch.Generator().manual_seed(0)
    spread = uniformity(torch.randn(500, 2000, generator=generator))
    assert spread.item() == pytest.approx(-4, abs=0.01)


def test_the_length_of_the_embeddings_does_not_count():
    z1, z2 = views()
    scale = torch.rand(12, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(alignment(scale * z1, z2), alignment(z1, z2))
    torch.testing.assert_close(uniformity(scale * z1), uniformity(z1))


def test_a_large_t_does_not_underflow():
    z = torch.eye(3)
    assert uniformity(z, t=1000.0).item() == -2000


def test_half_precision_loses_nothing():
    z1, z2 = (z.bfloat16() for z in views(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = alignment(z1, z2), uniformity(z1)
    assert torch.equal(inside[0], alignment(z1.float(), z2.float()))
    assert torch.equal(inside[1], uniformity(z1.float()))


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        alignment(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"at least two images, got \(1, 3\)"):
        uniformity(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"t must be positive, got 0\.0"):
        uniformity(torch.zeros(2, 3), t=0.0)


def means(c=9, d=4):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(c, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_distances_of_classes_are_the_formulas_of_the_papers(k):
    rows = normalize(means())
    inter, near = 0.0, 0.0
    for i, row in enumerate(rows):
        distances = sorted((row - other).norm().item() for j, other in enumerate(rows) if j != i)
        inter += sum(distances) / (9 * 8)
        near += sum(distances[:k]) / (9 * k)
    assert inter_class_uniformity(means()).mean().item() == pytest.approx(inter)
    assert neighborhood_uniformity(means(), k).mean().item() == pytest.approx(near)


def test_vertices_of_a_simplex_are_at_its_edge_from_each_other():
    edge = torch.full((5,), (2 * 5 / 4) ** 0.5)
    torch.testing.assert_close(inter_class_uniformity(simplex_etf(5, 8)), edge)
    torch.testing.assert_close(neighborhood_uniformity(simplex_etf(5, 8), 2), edge)


def test_with_all_classes_for_neighbors_they_are_the_same():
    torch.testing.assert_close(neighborhood_uniformity(means(), 8), inter_class_uniformity(means()))


def test_classes_in_one_point_are_at_distance_zero():
    same = torch.randn(1, 64).expand(30, 64)
    assert inter_class_uniformity(same).max() == 0
    assert neighborhood_uniformity(same, 1).max() == 0


def test_half_precision_loses_nothing_between_classes():
    half = means().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = neighborhood_uniformity(half, 2)
    assert torch.equal(inside, neighborhood_uniformity(half.float(), 2))


def test_impossible_class_means_are_named():
    with pytest.raises(ValueError, match=r"at least two classes, got \(1, 4\)"):
        inter_class_uniformity(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"neighbors must lie in 1\.\.8, .* got 9"):
        neighborhood_uniformity(means(), 9)


def embeddings(n=40, d=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.arange(1.0, d + 1)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (9, 9)])
def test_the_rank_is_the_formula_of_the_paper_on_both_sides_of_a_square(n, d):
    z = embeddings(n, d)
    singular = np.linalg.svd(z.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(z).item() == pytest.approx(expected, rel=1e-6)


def test_orthogonal_directions_of_one_length_count_each():
    basis = torch.linalg.qr(embeddings(20, 20)).Q[:5]
    assert effective_rank(basis).item() == pytest.approx(5, rel=1e-6)


def test_scale_and_rotation_do_not_change_the_rank():
    z = embeddings()
    turn = torch.linalg.qr(embeddings(7, 7, seed=1)).Q
    torch.testing.assert_close(effective_rank(1e-3 * z @ turn), effective_rank(z))


def test_embeddings_in_one_point_have_rank_one_and_are_not_centered():
    point = embeddings(1, 64).expand(100, 64)
    assert effective_rank(point).item() == pytest.approx(1, abs=1e-5)
    near = point + 1e-3 * embeddings(100, 64, seed=2) / 64
    assert 1 < effective_rank(near).item() < 1.02
    assert effective_rank(near - near.mean(0)).item() > 30


def test_zeros_have_rank_one():
    assert effective_rank(torch.zeros(4, 3)).item() == 1


def test_a_row_that_is_not_finite_makes_the_rank_nan_instead_of_an_error():
    z = embeddings()
    z[3, 2] = torch.inf
    assert effective_rank(z).isnan()


def test_half_precision_loses_nothing_of_the_rank():
    z = embeddings().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = effective_rank(z)
    assert torch.equal(inside, effective_rank(z.float()))


def test_the_rank_keeps_no_gradient():
    assert not effective_rank(embeddings().requires_grad_()).requires_grad


def test_embeddings_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(N, D\) with N, D > 0, got \(0, 4\)"):
        effective_rank(torch.zeros(0, 4))
