"""What `select` promises: typical, unlike each other, tail early, no copies, going on from labels."""

import numpy as np
import pytest

from sslgh.explore import select as module
from sslgh.explore.coverage import REACH, cover, covered_by, similarity, soft_sizes
from sslgh.explore.select import select


def blobs(sizes, *, seed=0, dims=16, spread=0.15):
    """Unit rows around one random direction per group, and the group of each."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(len(sizes), dims))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    rows = np.repeat(centers, sizes, axis=0) + spread * generator.normal(size=(sum(sizes), dims))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def chosen(*arguments, **options):
    return [choice.row for choice in select(*arguments, **options)]


SIZES = [200, 60, 20, 6, 3]


def test_rare_groups_are_among_the_first_choices_where_random_ones_miss_them() -> None:
    rows, kinds = blobs(SIZES)

    for groups in (kinds, None):
        assert set(kinds[chosen(rows, 10, groups=groups)]) == set(range(5))

    drawn = [
        len(set(kinds[np.random.default_rng(s).permutation(len(rows))[:10]])) for s in range(20)
    ]
    assert np.mean(drawn) < 4


def test_any_beginning_of_a_list_is_the_list_of_a_smaller_budget() -> None:
    rows, kinds = blobs(SIZES)

    assert chosen(rows, 30, groups=kinds)[:7] == chosen(rows, 7, groups=kinds)


def test_the_first_choice_of_a_group_is_a_typical_photo_of_it() -> None:
    rows, kinds = blobs([40, 40], spread=0.3)

    for row in chosen(rows, 2, groups=kinds):
        inside = rows[kinds == kinds[row]]
        typicality = (inside @ inside.T).mean(1)
        assert (typicality <= (inside @ rows[row]).mean() + 1e-6).mean() >= 0.9


def test_of_near_copies_one_is_chosen_and_none_of_a_labeled_photo() -> None:
    rows, kinds = blobs([30, 10])
    copies = np.full(40, -1)
    copies[[0, 1, 2]] = 0
    copies[[30, 31]] = 1
    known = np.full(40, -1)
    known[31] = 7

    found = chosen(rows, 100, groups=kinds, copies=copies, known=known)

    assert len(found) == len(set(found)) == 40 - 2 - 2
    assert 0 in found
    assert not {1, 2, 30, 31} & set(found)


def test_the_list_goes_on_where_no_label_stands_yet() -> None:
    rows, kinds = blobs([50, 50, 50])
    known = np.where(kinds == 1, 0, -1)
    known[:10] = 1

    first = select(rows, 1, groups=kinds, known=known)[0]

    assert kinds[first.row] == 2
    assert first.reason == "first of group 3 (50 photos)"


def test_going_on_from_a_list_gives_the_rest_of_a_longer_one() -> None:
    rows, kinds = blobs(SIZES)
    whole = chosen(rows, 25, groups=kinds)
    known = np.full(len(rows), -1)
    known[whole[:10]] = 0

    rest = chosen(rows, 15, groups=kinds, known=known)

    # A labeled photo need not be covered any more, which changes a few choices.
    assert len(set(rest) & set(whole[10:])) >= 12


def test_a_large_group_counts_by_the_root_of_its_size() -> None:
    rows = np.eye(2, dtype=np.float32)[np.repeat([0, 1], [100, 4])]
    groups = np.repeat([0, 1], [100, 4])

    weights = module._weights(rows, groups, np.array([100, 4]))

    assert weights[groups == 0].sum() == pytest.approx(10)
    assert weights[groups == 1].sum() == pytest.approx(2)
    assert module._weights(rows, np.full(104, -1), np.array([], int)).sum() == pytest.approx(
        12, rel=0.02
    )


def test_every_choice_is_the_one_that_raises_the_coverage_most() -> None:
    rows, _ = blobs([12, 5, 3], spread=0.4)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(rows))

    found = list(cover(rows, weights, covered=np.zeros(20), candidates=np.ones(20, bool)))

    table = np.exp((rows.astype(float) @ rows.T.astype(float) - 1) / REACH)
    left, covered = set(range(20)), np.zeros(20)
    for gain in found:
        best = max((weights @ np.maximum(table[i] - covered, 0)) for i in left)
        assert gain.gain == pytest.approx(best, rel=1e-4)
        covered = np.maximum(covered, table[gain.row])
        left.remove(gain.row)
    assert not left


def test_coverage_is_the_similarity_to_the_nearest_chosen_row() -> None:
    rows, _ = blobs([10, 5])

    assert covered_by(rows, rows[:0]).tolist() == [0] * 15
    assert covered_by(rows, rows[[0, 12]]) == pytest.approx(similarity(rows, rows[[0, 12]]).max(1))
    assert soft_sizes(np.repeat(rows[:1], 4, axis=0)) == pytest.approx([4] * 4)


def test_of_more_photos_than_are_compared_all_of_a_small_group_stay(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_COMPARED", 50)
    groups = np.repeat([0, 1, 2], [500, 100, 8])

    kept = groups[module._sample(groups)]

    assert np.bincount(kept).tolist() == [21, 21, 8]


def test_blocks_do_not_change_the_list(monkeypatch) -> None:
    rows, kinds = blobs(SIZES)
    whole = chosen(rows, 12, groups=kinds)
    monkeypatch.setattr("sslgh.explore.coverage.CHUNK", 1000)

    assert chosen(rows, 12, groups=kinds) == whole


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_of_nothing_is_refused(budget) -> None:
    with pytest.raises(ValueError, match=rf"the budget must be at least 1 photo, got {budget}"):
        select(blobs([3])[0], budget)


def test_groups_of_another_folder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(N, D\), and groups, copies and known \(N,\)"):
        select(blobs([3])[0], 1, groups=np.zeros(4, np.int64))
