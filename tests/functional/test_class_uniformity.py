import pytest
import torch
from torch.nn.functional import normalize

from sslgh.functional import inter_class_uniformity, neighborhood_uniformity, simplex_etf


def means(c=9, d=4):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(c, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_they_are_the_formulas_of_the_papers(k):
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


def test_half_precision_loses_nothing():
    half = means().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = neighborhood_uniformity(half, 2)
    assert torch.equal(inside, neighborhood_uniformity(half.float(), 2))


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match=r"at least two classes, got \(1, 4\)"):
        inter_class_uniformity(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"neighbors must lie in 1\.\.8, .* got 9"):
        neighborhood_uniformity(means(), 9)
