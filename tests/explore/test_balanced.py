"""Balanced subsets, and when to stop labeling."""

import numpy as np
import pytest

from sslgh.explore.balanced import balanced_subset, equal_shares, stop_hint


def test_shares_are_as_equal_as_the_sizes_allow() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.integers(0, 30, 6).tolist()
        total = int(generator.integers(1, 120))
        shares = equal_shares(sizes, total)
        assert sum(shares) == min(total, sum(sizes))
        assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
        largest = max(shares)
        assert all(s >= largest - 1 for s, size in zip(shares, sizes, strict=True) if s < size)


def test_a_balanced_subset_holds_every_group_equally_and_no_copies() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    groups = np.repeat([0, 1, 2, -1], [40, 12, 3, 5])
    copies = np.full(60, -1)
    copies[40:46] = 0

    found = balanced_subset(rows, groups, 18, copies=copies)

    assert np.bincount(groups[found]).tolist() == [8, 7, 3]
    assert (copies[found] == 0).sum() <= 1
    assert found.tolist() == sorted(set(found.tolist()))


def test_without_a_group_there_is_no_balance() -> None:
    with pytest.raises(ValueError, match="needs photos with a kind or a group"):
        balanced_subset(np.eye(3, dtype=np.float32), np.full(3, -1), 2)


def test_the_stop_hint_waits_for_thirty_labels_without_a_new_kind() -> None:
    assert stop_hint(["a"] * 30) is None
    assert stop_hint(["a"] * 30 + ["b"] * 30) is None
    assert stop_hint(["a", "b"] + ["a"] * 29) is None
    assert stop_hint(["b"] + ["a"] * 30 + ["b"]).startswith(
        "the last 30 labels gave no new kind (2"
    )
