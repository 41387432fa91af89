import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.harmonize.balanced_epochs import (
    _nearest,
    balanced_epoch,
    balanced_sample,
    capped_places,
    hierarchical_clusters,
    level_counts,
    weighted_epoch,
)

BLOBS = (5000, 50, 20)


def blobs(sizes: tuple[int, ...] = BLOBS, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Directions around orthogonal axes, so many of each."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(0))
    return torch.eye(dim)[labels] + 0.1 * noise, labels


def nested(seed: int) -> np.ndarray:
    """Three levels of random clusters: 60 points in 12, 5 and 2."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(12, size=60)
    middle = rng.integers(5, size=12)[fine]
    return np.stack([fine, middle, rng.integers(2, size=5)[middle]])


@pytest.mark.parametrize("seed", range(40))
def test_places_are_those_of_the_largest_cap_that_fits_and_one_more_for_some(seed) -> None:
    rng = np.random.default_rng(seed)
    limits = rng.integers(1, 30, size=rng.integers(1, 9))
    size = int(rng.integers(limits.sum() + 1))
    places = capped_places(limits, size, rng)
    # The equation by brute force: every cap there could be.
    cap = max(c for c in range(size + 1) if sum(min(c, int(n)) for n in limits) <= size)
    least = np.minimum(limits, cap)
    assert places.sum() == size
    assert set(places - least) <= {0, 1}
    assert (places <= limits).all()


def test_the_places_left_over_go_to_each_as_often_as_to_any_other() -> None:
    rng = np.random.default_rng(0)
    extra = sum(capped_places(np.array([9, 2, 9, 9]), 16, rng) - [4, 2, 4, 4] for _ in range(3000))
    assert extra[1] == 0
    np.testing.assert_allclose(extra[[0, 2, 3]], 2000, rtol=0.05)


@pytest.mark.parametrize("most_repeats", [1, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_every_level_share_the_places_of_the_one_above(seed, most_repeats) -> None:
    clusters = nested(seed)
    size = 60 if most_repeats > 1 else 30
    drawn = balanced_sample(clusters, size, np.random.default_rng(seed), most_repeats=most_repeats)
    assert drawn.shape == (size,)
    times = np.bincount(drawn, minlength=60)
    assert times.max() <= most_repeats
    gathered = np.zeros((1, 60), dtype=np.int64)
    for above, level in zip((gathered[0], *clusters[:0:-1]), clusters[::-1], strict=True):
        for parent in np.unique(above):
            groups = [np.flatnonzero(level == k) for k in np.unique(level[above == parent])]
            limits = np.array([most_repeats * len(group) for group in groups])
            got = np.array([times[group].sum() for group in groups])
            assert got.max() - got[got < limits].min(initial=got.max()) <= 1
    for group in (clusters[0] == k for k in np.unique(clusters[0])):
        assert np.ptp(times[group]) <= 1  # no point again before all others of its cluster


def test_as_many_places_as_points_without_repeats_draw_every_point_once() -> None:
    drawn = balanced_sample(nested(0), 60, np.random.default_rng(0))
    assert sorted(drawn.tolist()) == list(range(60))


def test_every_point_is_drawn_sooner_or_later() -> None:
    clusters = nested(1)
    rng = np.random.default_rng(0)
    times = sum(np.bincount(balanced_sample(clusters, 12, rng), minlength=60) for _ in range(600))
    assert times.min() > 0
    for group in (clusters[0] == k for k in np.unique(clusters[0])):
        # Points of one cluster are drawn alike: a binomial's spread around their mean.
        mean = times[group].mean()
        assert np.abs(times[group] - mean).max() < 5 * mean**0.5


@pytest.mark.parametrize(
    ("most_repeats", "counts"),
    [(1, [5000, 50, 20]), (10, [4370, 500, 200]), (100, [1690, 1690, 1690])],
)
def test_the_tail_gets_what_the_cap_leaves_it(most_repeats, counts) -> None:
    """5,070 places; up to m times 50 and m times 20 of them, or a third each."""
    clusters = np.repeat([[0, 1, 2]], BLOBS, axis=1)
    shown = balanced_epoch(clusters, np.random.default_rng(0), most_repeats=most_repeats)
    assert np.bincount(clusters[0, shown]).tolist() == counts


def test_clusters_of_three_blobs_raise_the_share_of_the_tail() -> None:
    z, labels = blobs()
    clusters = hierarchical_clusters(z, counts=(12, 3)).numpy()
    for label in range(3):
        assert len(np.unique(clusters[1, labels == label])) == 1
    shown = balanced_epoch(clusters, np.random.default_rng(0), most_repeats=10)
    assert np.bincount(labels[shown]).tolist() == [4370, 500, 200]


def test_spreading_moves_centroids_from_the_head_to_the_tail() -> None:
    z, labels = blobs()
    tail = [
        len(hierarchical_clusters(z, rounds=rounds)[1][labels > 0].unique()) for rounds in (0, 10)
    ]
    assert tail[0] == 2  # 70 of 5,070 points get 2 of 50 centroids
    assert tail[1] >= 6


def test_clusters_are_nested_counted_from_zero_and_functions_of_direction_and_seed() -> None:
    z, _ = blobs((300, 60, 40))
    fine, coarse = hierarchical_clusters(z, seed=1)
    assert level_counts(400) == (20, 4)
    for level, most in ((fine, 20), (coarse, 4)):
        assert torch.equal(level.unique(), torch.arange(int(level.max()) + 1))
        assert 1 < len(level.unique()) <= most
    assert all(len(coarse[fine == k].unique()) == 1 for k in fine.unique())
    lengths = 2.0 ** torch.arange(400).remainder(5)[:, None]  # exact, so that no bit changes
    assert torch.equal(hierarchical_clusters(lengths * z, seed=1)[1], coarse)
    assert not torch.equal(hierarchical_clusters(z, seed=2)[0], fine)


def test_a_round_keeps_the_points_nearest_to_each_centroid() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centroids = (F.normalize(torch.randn(n, 5, generator=generator)) for n in (40, 4))
    labels = torch.randint(4, (40,), generator=generator)
    expected = []
    for k in range(4):
        local = [i for i in range(40) if labels[i] == k]
        expected += sorted(local, key=lambda i: -float(points[i] @ centroids[k]))[:3]
    assert _nearest(points, centroids, labels, 3).tolist() == expected


def test_points_of_one_direction_are_one_cluster() -> None:
    same = torch.ones(100, 4)
    assert torch.equal(hierarchical_clusters(same, counts=(5, 2)), torch.zeros(2, 100).long())


def test_an_epoch_without_clusters_is_an_ordinary_one() -> None:
    shown = balanced_epoch(np.full((2, 50), -1), np.random.default_rng(3), most_repeats=10)
    assert shown.tolist() == np.random.default_rng(3).permutation(50).tolist()


def test_points_of_no_cluster_are_shown_once_among_the_others() -> None:
    clusters = np.array([[0] * 40 + [1] * 4 + [-1] * 6])
    shown = balanced_epoch(clusters, np.random.default_rng(0), most_repeats=2)
    assert np.bincount(shown)[44:].tolist() == [1] * 6
    assert np.bincount(clusters[0, shown] + 1).tolist() == [6, 36, 8]
    assert shown.tolist() != sorted(shown)


def test_what_makes_no_sense_is_named() -> None:
    z, _ = blobs((30, 10))
    with pytest.raises(ValueError, match=r"counts must fall from at most 40 .*got \(5, 5\)"):
        hierarchical_clusters(z, counts=(5, 5))
    with pytest.raises(ValueError, match=r"got \(41,\)"):
        hierarchical_clusters(z, counts=(41,))
    with pytest.raises(ValueError, match="each of the 2 levels"):
        hierarchical_clusters(z, counts=(5, 2), kept=(3,))
    with pytest.raises(ValueError, match="rounds must be 0 or more, got -1"):
        hierarchical_clusters(z, rounds=-1)
    with pytest.raises(ValueError, match=r"shape \(N, D\), got \(40,\)"):
        hierarchical_clusters(z[:, 0])
    with pytest.raises(ValueError, match="finite"):
        hierarchical_clusters(z / 0)
    with pytest.raises(
        ValueError, match="60 points drawn at most 2 times fill 0 to 120 places, got 121"
    ):
        balanced_sample(nested(0), 121, np.random.default_rng(0), most_repeats=2)
    with pytest.raises(ValueError, match=r"shape \(L, N\), got \(60,\)"):
        balanced_sample(nested(0)[0], 5, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(5))
def test_a_weighted_epoch_shows_each_as_often_as_its_rate_rounded(seed) -> None:
    generator = np.random.default_rng(seed)
    rates = generator.gamma(0.5, size=200)
    rates *= 200 / rates.sum()
    shown = weighted_epoch(rates, np.random.default_rng(seed))
    times = np.bincount(shown, minlength=200)
    assert len(shown) == 200
    assert (np.abs(times - rates) < 1).all()
    assert not (np.diff(shown) >= 0).all()


def test_rates_are_right_in_the_mean_and_equal_ones_leave_the_plain_order() -> None:
    rates = np.array([2.5, 0.75, 0.5, 0.25])
    times = sum(
        np.bincount(weighted_epoch(rates, np.random.default_rng(seed)), minlength=4)
        for seed in range(2000)
    )
    assert np.abs(times / 2000 - rates).max() < 0.05
    plain = np.random.default_rng(1).permutation(50)
    assert (weighted_epoch(np.ones(50), np.random.default_rng(1)) == plain).all()
