"""Groups that recur, shares with intervals, tails and maps, on drawn directions."""

import numpy as np
import pytest

from sslgh.explore.directions import directions
from sslgh.explore.groups import find_groups, found_shares
from sslgh.explore.photo_map import MOST_SHOWN, neighbor_map, principal_plane, shown_on_map
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
    found = find_groups(rows, resamples=4)
    assert [len(group.members) for group in found.groups] == [160, 60, 25]
    assert all(len(set(label[group.members])) == 1 for group in found.groups)
    assert [group.found for group in found.groups] == [4, 4, 4]
    assert found.numbers == [3, 3, 3, 3]
    for group in found.groups:
        assert group.low <= group.share + 0.03
        assert group.high >= group.share - 0.03


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

    def at_random(rows: np.ndarray, seed: int) -> np.ndarray:
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
    assert found.groups[0].resamples in (0, 10)


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


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_map_of_few_photos_is_a_plane(count) -> None:
    rows = directions(np.random.default_rng(0).normal(size=(count, 1)).astype(np.float32))
    assert neighbor_map(rows).shape == principal_plane(rows).shape == (count, 2)
    assert np.isfinite(neighbor_map(rows)).all()


def test_a_map_shows_five_thousand_at_most() -> None:
    assert shown_on_map(10).tolist() == list(range(10))
    chosen = shown_on_map(MOST_SHOWN * 3)
    assert len(set(chosen.tolist())) == MOST_SHOWN
