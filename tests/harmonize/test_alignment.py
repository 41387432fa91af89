from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ortho_group

from sslgh.harmonize.alignment import align_vertices, keep_identity, match_groups


def simplex(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    """``count`` unit vectors of equal angles: a centered identity, turned at random."""
    centered = np.eye(count) - 1 / count
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    padded = np.zeros((count, max(count, dim)))
    padded[:, :count] = centered
    return torch.from_numpy(padded @ ortho_group.rvs(max(count, dim), random_state=seed))


def means(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(dim, generator=generator)
    return F.normalize(torch.randn(count, dim, generator=generator) + shared, dim=1).double()


def score(vertices: torch.Tensor, group_means: torch.Tensor) -> float:
    """Sum of matched cosines of the centered means."""
    targets = F.normalize(group_means - group_means.mean(0), dim=1)
    matched = match_groups(targets, vertices)
    return float((targets * vertices[matched]).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_matching_equals_the_best_of_all_permutations(seed, groups):
    vertices, group_means = simplex(6, 8, seed), means(groups, 8, seed) * 3
    cosines = F.normalize(group_means, dim=1) @ vertices.T
    best = max(
        permutations(range(6), groups), key=lambda chosen: sum(cosines[range(groups), list(chosen)])
    )
    assert match_groups(group_means, vertices).tolist() == list(best)


def test_every_group_has_its_own_vertex():
    same = torch.ones(10, 16)
    matched = match_groups(same, simplex(12, 16).float())
    assert matched.dtype == torch.int64
    assert len(matched.unique()) == 10


@pytest.mark.parametrize(("groups", "vertices", "dim"), [(2, 5, 16), (10, 10, 16), (20, 100, 128)])
def test_the_turn_keeps_all_angles(groups, vertices, dim):
    structure = simplex(vertices, dim).float()
    turned = align_vertices(structure, means(groups, dim, 1).float())
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned @ turned.T, structure @ structure.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("groups", "vertices"), [(2, 2), (4, 9), (9, 9), (1, 4)])
def test_the_turn_is_never_worse_than_none(seed, groups, vertices):
    structure, group_means = simplex(vertices, 12, seed), means(groups, 12, seed)
    turned = align_vertices(structure, group_means)
    assert score(turned, group_means) >= score(structure, group_means) - 1e-9


def test_a_turn_helps_much_on_unrelated_means():
    structure, group_means = simplex(20, 32), means(10, 32, 3)
    assert score(align_vertices(structure, group_means), group_means) > 2 * score(
        structure, group_means
    )


@pytest.mark.parametrize("seed", range(10))
def test_another_round_of_assignment_and_turn_changes_nothing(seed):
    structure, group_means = means(24, 4, seed + 100), means(20, 4, seed)
    turned = align_vertices(structure, group_means)
    assert score(align_vertices(turned, group_means), group_means) == pytest.approx(
        score(turned, group_means)
    )


def test_no_small_turn_after_the_last_is_better():
    structure, group_means = simplex(8, 8), means(8, 8, 2)
    turned = align_vertices(structure, group_means)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        skew = torch.randn(8, 8, generator=generator, dtype=torch.float64) * 0.05
        assert score(turned @ torch.matrix_exp(skew - skew.T), group_means) <= score(
            turned, group_means
        )


@pytest.mark.parametrize("seed", range(3))
def test_means_that_are_a_slightly_turned_structure_are_met_exactly(seed):
    structure = simplex(6, 16, seed)
    generator = torch.Generator().manual_seed(seed)
    skew = torch.randn(16, 16, generator=generator, dtype=torch.float64) * 0.03
    wanted = structure @ torch.matrix_exp(skew - skew.T)
    shifted = 0.4 * wanted + torch.ones(16) * 0.7  # the shared direction must not matter
    torch.testing.assert_close(align_vertices(structure, shifted), wanted, atol=1e-8, rtol=0)


def test_the_same_arguments_give_the_same_bits_and_leave_the_arguments_alone():
    structure, group_means = simplex(20, 32).float(), means(10, 32, 3).float()
    before = structure.clone()
    assert torch.equal(
        align_vertices(structure, group_means), align_vertices(structure, group_means)
    )
    assert torch.equal(structure, before)


def test_one_group_turns_nothing():
    structure = simplex(5, 8)
    assert torch.equal(align_vertices(structure, means(1, 8, 0)), structure)


def test_equal_means_stay_finite():
    turned = align_vertices(simplex(5, 8), torch.ones(3, 8, dtype=torch.float64))
    assert torch.isfinite(turned).all()


@pytest.mark.parametrize("function", [match_groups, lambda m, v: align_vertices(v, m)])
def test_too_many_groups_or_another_width_are_refused(function):
    with pytest.raises(ValueError, match="got 6 groups for 5 vertices"):
        function(means(6, 8, 0), simplex(5, 8))
    with pytest.raises(ValueError, match=r"share a width, got \(3, 7\) and \(5, 8\)"):
        function(means(3, 7, 0), simplex(5, 8))


def test_clusters_keep_the_names_under_which_most_of_their_samples_were() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(0, 6, (300,), generator=generator) * 2  # names 0, 2, .. 10 of 12
    numbers = torch.randperm(6, generator=generator)
    labels = numbers[before // 2]
    moved = torch.rand(300, generator=generator) < 0.2
    labels[moved] = torch.randint(0, 6, (int(moved.sum()),), generator=generator)
    names = keep_identity(labels, before, 12)
    assert (names == before)[~moved].all()
    before[:50], labels[50:80] = -1, -1
    names = keep_identity(labels, before, 12)
    assert (names[50:80] == -1).all()
    assert (names == numbers.argsort()[labels.clamp(min=0)] * 2)[labels >= 0].all()


def test_a_cluster_that_is_new_takes_a_free_name() -> None:
    before = torch.tensor([4, 4, 4, 4, 1, 1])
    names = keep_identity(torch.tensor([0, 0, 0, 2, 1, 1]), before, 6).tolist()
    assert names[:3] + names[4:] == [4, 4, 4, 1, 1]
    assert names[3] in {0, 2, 3, 5}
    assert keep_identity(torch.tensor([1, 0]), torch.tensor([-1, -1]), 3).unique().numel() == 2
    with pytest.raises(ValueError, match="got 3 clusters for 2 names"):
        keep_identity(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), 2)
