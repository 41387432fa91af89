"""Groups that recur, shares with intervals, tails and maps, on drawn directions."""

import sys
from types import ModuleType

import numpy as np
import pytest

from sslgh.explore.directions import directions
from sslgh.explore.groups import find_groups, found_shares, share_interval
from sslgh.explore.photo_map import (
    MOST_SHOWN,
    neighbor_map,
    principal_plane,
    shown_on_map,
    umap_map,
)
from sslgh.explore.tail import tail


def kinds(sizes: tuple[int, ...], spread: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Directions (N, 16) around far centers, and the kind of each."""
    generator = np.random.default_rng(0)
    centers = np.eye(16, dtype=np.float32)
    label = np.repeat(np.arange(len(sizes)), sizes)
    drawn = centers[label] + spread * generator.normal(size=(len(label), 16)) / 4
    return directions(drawn.astype(np.float32)), label


def test_groups_of_far_kinds_are_the_kinds_and_recur() -> None:
    rows, label = kinds((160, 60, 25))
    found = find_groups(rows, resamples=5)
    assert [len(group.members) for group in found.groups] == [160, 60, 25]
    assert all(len(set(label[group.members])) == 1 for group in found.groups)
    assert [group.found for group in found.groups] == [5, 5, 5]
    assert found.numbers == [3] * 5
    for group in found.groups:
        assert 0 < group.low < group.share < group.high < 1


def test_every_photo_is_in_one_group_and_the_typical_come_first() -> None:
    rows, _ = kinds((80, 30))
    found = find_groups(rows, resamples=1)
    members = np.concatenate([group.members for group in found.groups])
    assert sorted(members.tolist()) == list(range(110))
    group = found.groups[0].members
    center = rows[group].mean(0)
    assert (np.diff(rows[group] @ center) <= 1e-6).all()
    assert (found.labels(110) >= 0).all()


def test_a_group_that_moves_when_photos_are_left_out_is_not_found_again() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)

    def at_random(rows: np.ndarray, seed: int, _: float) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 8, len(rows))

    found = find_groups(rows, partition=at_random)
    assert [group.found for group in found.groups] == [0] * 8
    assert np.isnan(found.groups[0].low)
    assert found.recurring == []


def test_found_again_is_a_jaccard_similarity_of_one_half() -> None:
    first = np.int64([0, 0, 0, 0, 1, 1])
    half = np.int64([0, 0, 1, 1, 2, 2])  # 2 of 4
    assert found_shares(first, half, 2).tolist() == [2 / 6, 2 / 6]
    third = np.int64([0, 1, 2, 3, 0, 0])  # group 1: 2 of 3; group 0: 1 of 4
    shares = found_shares(first, third, 2)
    assert np.isnan(shares[0])
    assert shares[1] == 0.5


def test_a_group_without_a_photo_in_the_resample_is_not_found() -> None:
    assert np.isnan(found_shares(np.int64([0, 0]), np.int64([0, 0]), 2)[1])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_photos_are_one_group(count) -> None:
    rows = directions(np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32))
    found = find_groups(rows)
    assert [len(group.members) for group in found.groups] == [count]
    assert (found.groups[0].resamples, found.numbers) == (0, [])


@pytest.mark.parametrize("size", [8, 9])
def test_a_kind_of_few_photos_far_from_all_others_is_found_again(size) -> None:
    rows, label = kinds((60, size), spread=0.1)
    found = find_groups(rows)
    assert sorted(found.groups[1].members.tolist()) == np.flatnonzero(label == 1).tolist()
    assert found.groups[1].found >= 5


def test_a_share_has_the_interval_of_wilson_where_resamples_do_not_spread() -> None:
    low, high = share_interval(3, 60, np.full(10, 0.05), 48)
    # Its ends are where the share is 1.645 standard errors of the end away: Wilson's definition.
    for end in (low, high):
        assert abs(0.05 - end) == pytest.approx(1.645 * np.sqrt(end * (1 - end) / 60), rel=1e-6)
    assert share_interval(60, 60, np.ones(10), 48)[0] < 0.97


def test_the_spread_of_means_without_replacement_becomes_that_of_new_samples() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(0.5, 0.1, size=400)  # a share that varies like a mean of these
    means = np.array([generator.permutation(drawn)[:320].mean() for _ in range(4000)])
    center = drawn.mean()
    low, high = share_interval(200, 400, means - center + 0.5, 320)
    assert high - low == pytest.approx(2 * 1.645 * 0.5 / 20, rel=0.02)  # the binomial is larger
    low, high = share_interval(200, 400, 0.5 + 20 * (means - center), 320)
    assert (high - low) / 2 == pytest.approx(1.645 * 20 * drawn.std() / 20, rel=0.1)


def test_a_group_that_under_five_resamples_find_has_no_interval() -> None:
    rows, _ = kinds((60, 30))
    found = find_groups(rows, resamples=4)
    assert [group.found for group in found.groups] == [4, 4]
    assert all(np.isnan([group.low, group.high]).all() for group in found.groups)


def test_the_same_seed_gives_the_same_groups() -> None:
    rows, _ = kinds((50, 20), spread=1.5)
    one, two = (find_groups(rows, seed=3, resamples=2) for _ in range(2))
    assert [group.members.tolist() for group in one.groups] == [
        g.members.tolist() for g in two.groups
    ]
    assert one.numbers == two.numbers


def test_a_tail_counts_what_the_rare_half_holds() -> None:
    found = tail([1, 1, 1, 97])
    assert found.sizes == [97, 1, 1, 1]
    assert (found.imbalance, found.half, found.rare_share) == (97, 1, 0.02)
    assert tail([5]).rare_share == 0


def test_a_map_keeps_neighbors_together() -> None:
    rows, label = kinds((40, 40))
    places = neighbor_map(rows)
    assert places.shape == (80, 2)
    assert np.abs(places).max() <= 1.0001
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, 9)
    assert (label[distance.argmin(1)] == label).mean() > 0.95


def test_umap_is_one_more_map_only_where_its_library_is_installed(monkeypatch) -> None:
    rows, _ = kinds((40, 40))
    monkeypatch.setitem(sys.modules, "umap", None)  # cannot be imported
    assert umap_map(rows) is None
    given = {}

    class UMAP:
        def __init__(self, **settings):
            given.update(settings)

        def fit_transform(self, rows):
            return rows[:, :2] * 7

    library = ModuleType("umap")
    library.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", library)
    assert np.abs(umap_map(rows, seed=3)).max() <= 1.0001
    assert given == {"n_neighbors": 15, "random_state": 3, "n_jobs": 1}
    assert umap_map(rows[:1].repeat(20, 0)) is None


@pytest.mark.slow
def test_umap_keeps_neighbors_together() -> None:
    pytest.importorskip("umap")
    rows, label = kinds((40, 40))
    places = umap_map(rows)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, 9)
    assert (label[distance.argmin(1)] == label).mean() > 0.95


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_map_of_few_photos_is_a_plane(count) -> None:
    rows = directions(np.random.default_rng(0).normal(size=(count, 1)).astype(np.float32))
    assert neighbor_map(rows).shape == principal_plane(rows).shape == (count, 2)
    assert np.isfinite(neighbor_map(rows)).all()


@pytest.mark.parametrize("different", [1, 11])
def test_a_map_of_copies_is_a_plane(different) -> None:
    rows = np.repeat(np.eye(16, dtype=np.float32)[:different], 30, axis=0)
    rows = np.zeros_like(rows) if different == 1 else rows
    assert np.array_equal(neighbor_map(rows), principal_plane(rows))


def test_a_map_shows_five_thousand_at_most() -> None:
    assert shown_on_map(10).tolist() == list(range(10))
    chosen = shown_on_map(MOST_SHOWN * 3)
    assert len(set(chosen.tolist())) == MOST_SHOWN
