import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

import sslgh.harmonize.mode_clustering as groups_module
from sslgh.harmonize.kmeans import spherical_kmeans
from sslgh.harmonize.mode_clustering import find_modes

EXP_20 = [int(1500 * 100 ** (-c / 19)) for c in range(20)]  # 1,500 to 15


def blobs(
    sizes: list[int],
    dim: int,
    spread: float,
    seed: int,
    elongation: float = 0.0,
    superclasses: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy class means near the sphere; ``spread`` is the length of the noise, that of a mean is 1."""
    draw = np.random.default_rng(seed)
    means = draw.standard_normal((len(sizes), dim))
    if superclasses:
        means += draw.standard_normal((superclasses, dim))[np.arange(len(sizes)) % superclasses]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    axes = draw.standard_normal(means.shape)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    truth = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise = draw.standard_normal((len(truth), dim)) * spread / dim**0.5
    along = draw.standard_normal((len(truth), 1)) * elongation
    points = means[truth] + noise + axes[truth] * along
    return torch.from_numpy(points).float(), torch.from_numpy(truth)


def total_variation(counts: torch.Tensor, truth: torch.Tensor) -> float:
    """Half the summed difference of the sorted shares."""
    true = truth.bincount().sort(descending=True).values.double()
    found = counts.sort(descending=True).values.double()
    size = max(len(true), len(found))
    true, found = (F.pad(c, (0, size - len(c))) for c in (true, found))
    return float((true / true.sum() - found / found.sum()).abs().sum() / 2)


@pytest.mark.parametrize(("max_groups", "seed"), [(3, 0), (15, 1)])
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("elongation", [0.0, 0.3])
def test_shares_of_5000_50_20_come_back_within_a_tenth(seed, elongation, dim, max_groups):
    points, truth = blobs([5000, 50, 20], dim, 0.3, seed, elongation)
    found = find_modes(points, max_groups=max_groups, seed=seed)
    assert len(found.counts) == 3
    for count, true in zip(found.counts.tolist(), [5000, 50, 20], strict=True):
        assert abs(count - true) <= 0.1 * true
    assert adjusted_rand_score(truth, found.labels) > 0.99


@pytest.mark.parametrize(("max_groups", "seed"), [(20, 0), (100, 1)])
@pytest.mark.parametrize(
    ("dim", "spread", "superclasses"),
    [(16, 0.6, 0), (64, 1.0, 0), (64, 0.6, 4), (128, 1.2, 0), (128, 0.8, 4)],
)
def test_shares_of_20_overlapping_long_tailed_classes_come_back(
    seed, dim, spread, superclasses, max_groups
):
    points, truth = blobs(EXP_20, dim, spread, seed, superclasses=superclasses)
    found = find_modes(points, max_groups=max_groups, seed=seed)
    assert total_variation(found.counts, truth) <= 0.02
    assert adjusted_rand_score(truth, found.labels) > 0.95


def test_plain_kmeans_splits_the_head_where_groups_do_not():
    points, truth = blobs(EXP_20, 64, 1.0, 0)
    _, labels = spherical_kmeans(points, 20, seed=0)
    assert total_variation(labels.bincount(), truth) > 0.15
    assert total_variation(find_modes(points, max_groups=20).counts, truth) < 0.01


@pytest.mark.parametrize("max_groups", [8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_few_hundred_samples_are_enough_for_separated_classes(seed, max_groups):
    sizes = [120, 60, 40, 30, 20, 15]
    points, truth = blobs(sizes, 32, 0.6, seed)
    found = find_modes(points, max_groups=max_groups, seed=seed)
    assert found.counts.tolist() == sizes
    assert adjusted_rand_score(truth, found.labels) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dim", [16, 128])
def test_one_blob_is_one_group(dim, seed):
    points, _ = blobs([3000], dim, 0.6, seed)
    assert find_modes(points, max_groups=50, seed=seed).counts.tolist() == [3000]


@pytest.mark.parametrize("dim", [16, 128])
def test_the_empty_sphere_has_no_groups(dim):
    points = torch.randn(3000, dim, generator=torch.Generator().manual_seed(0))
    assert len(find_modes(points, max_groups=50).counts) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_long_even_group_is_not_cut(seed):
    draw = np.random.default_rng(seed)
    axes = np.linalg.qr(draw.standard_normal((64, 2)))[0].T
    points = (
        axes[0] + axes[1] * draw.uniform(-1, 1, (5000, 1)) + draw.standard_normal((5000, 64)) * 0.04
    )
    assert find_modes(torch.from_numpy(points), max_groups=15, seed=seed).counts.tolist() == [5000]


@pytest.mark.parametrize("seed", range(3))
def test_groups_too_large_to_be_looked_at_whole_keep_their_weight(monkeypatch, seed):
    monkeypatch.setattr(groups_module, "SAMPLE", 100)
    points, truth = blobs([9000, 500, 300, 100], 16, 0.7, seed)
    found = find_modes(points, max_groups=20, seed=seed)
    assert total_variation(found.counts, truth) <= 0.02
    assert adjusted_rand_score(truth, found.labels) > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_opposite_blobs_on_a_circle_never_mix(seed):
    points = torch.cat([torch.tensor([[1.0, 0.0]] * 300), torch.tensor([[-1.0, 0.0]] * 40)])
    points += 0.1 * torch.randn(340, 2, generator=torch.Generator().manual_seed(seed))
    labels = find_modes(points, max_groups=20).labels
    assert not set(labels[:300].tolist()) & set(labels[300:].tolist())


def test_opposite_blobs_are_two_groups():
    pole = F.one_hot(torch.tensor(0), 8).float()
    points = torch.cat([pole.repeat(300, 1), -pole.repeat(40, 1)])
    points += 0.1 * torch.randn(340, 8, generator=torch.Generator().manual_seed(0))
    assert find_modes(points, max_groups=20).counts.tolist() == [300, 40]


def test_scanned_digits_are_grouped_better_than_by_kmeans():
    images, digits = load_digits(return_X_y=True)
    draw = np.random.default_rng(0)
    chosen = np.concatenate(
        [
            draw.permutation(np.flatnonzero(digits == c))[: int(170 * 20 ** (-c / 9))]
            for c in range(10)
        ]
    )
    points = torch.from_numpy(images[chosen] - images[chosen].mean(0)).float()
    truth = torch.from_numpy(digits[chosen])
    ours, theirs = [], []
    for seed in range(5):
        ours.append(total_variation(find_modes(points, max_groups=50, seed=seed).counts, truth))
        theirs.append(total_variation(spherical_kmeans(points, 10, seed=seed)[1].bincount(), truth))
    assert np.mean(ours) < 0.7 * np.mean(theirs)


def test_more_classes_than_groups_allowed_come_out_as_the_allowed_number_and_keep_the_largest():
    points, _ = blobs(EXP_20, 64, 0.6, 0)
    found = find_modes(points, max_groups=8)
    assert len(found.counts) == 8
    assert found.counts[0] >= 1500
    assert found.counts.sum() == len(points)


@pytest.mark.parametrize("groups", [1, 2, 5, 6, 9, 30])
def test_a_known_number_of_groups_is_kept(groups):
    points, truth = blobs([200, 100, 60, 40, 20], 32, 0.5, 0)
    found = find_modes(points, max_groups=30, groups=groups)
    assert len(found.counts) == groups
    if groups == 5:
        assert adjusted_rand_score(truth, found.labels) == 1
    if groups > 5:  # groups are cut, never mixed
        assert all(len(truth[found.labels == k].unique()) == 1 for k in range(groups))


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (2, 1), (2, 2), (7, 3), (7, 7), (12, 5)])
def test_a_handful_of_samples_is_grouped_as_asked(count, groups):
    points = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    assert len(find_modes(points, max_groups=10, groups=groups).counts) == groups
    assert len(find_modes(points, max_groups=10).counts) == 1


@pytest.mark.parametrize("count", [1, 7, 500])
def test_equal_embeddings_are_one_group_whatever_is_asked(count):
    points = torch.ones(count, 8)
    assert find_modes(points, max_groups=5).counts.tolist() == [count]
    assert find_modes(points, max_groups=5, groups=1).counts.tolist() == [count]
    assert find_modes(points, max_groups=5, groups=min(3, count)).counts.tolist() == [count]


def test_what_comes_back_fits_together():
    points, _ = blobs(EXP_20[:8], 16, 0.6, 0)
    found = find_modes(points, max_groups=40)
    assert found.labels.dtype == found.counts.dtype == torch.int64
    assert torch.equal(found.labels.bincount(), found.counts)
    assert torch.equal(found.counts, found.counts.sort(descending=True).values)
    unit = F.normalize(points, dim=1)
    means = torch.stack([unit[found.labels == k].mean(0) for k in range(len(found.counts))])
    torch.testing.assert_close(found.means, F.normalize(means, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.micro.norm(dim=1), torch.ones(len(found.micro)))


def test_the_same_arguments_give_the_same_bits():
    points, _ = blobs(EXP_20, 16, 1.0, 0)
    for one, other in zip(
        *(find_modes(points, max_groups=100, seed=3) for _ in range(2)), strict=True
    ):
        assert torch.equal(one, other)


def test_lengths_do_not_count():
    points, _ = blobs(EXP_20[:8], 16, 0.6, 0)
    scales = torch.logspace(-2, 2, len(points))[:, None]
    one, other = (find_modes(p, max_groups=40) for p in (points, points * scales))
    assert total_variation(one.counts, other.labels) < 0.002


def test_a_turn_of_the_embedding_and_another_order_of_the_samples_keep_the_groups():
    points, truth = blobs(EXP_20[2:], 32, 0.8, 0)
    generator = torch.Generator().manual_seed(0)
    rotate = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    order = torch.randperm(len(points), generator=generator)
    before = find_modes(points, max_groups=40)
    assert total_variation(before.counts, truth) < 0.002
    assert (
        adjusted_rand_score(before.labels, find_modes(points @ rotate, max_groups=40).labels)
        > 0.999
    )
    assert (
        adjusted_rand_score(before.labels[order], find_modes(points[order], max_groups=40).labels)
        > 0.999
    )


def test_a_warm_start_keeps_the_groups_of_a_population_that_moved_a_little():
    points, _ = blobs(EXP_20[2:], 32, 0.8, 0)
    before = find_modes(points, max_groups=40)
    moved = points + 0.1 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0)) / 8
    after = find_modes(moved, max_groups=40, start=before.micro)
    assert adjusted_rand_score(before.labels, after.labels) > 0.999
    fewer = find_modes(moved[: len(moved) // 2], max_groups=40, start=before.micro)
    assert len(fewer.micro) < len(before.micro)


def test_impossible_arguments_are_refused():
    points = torch.randn(50, 8)
    with pytest.raises(ValueError, match=r"1\.\.20 \(max_groups 20, 50 samples\), got 21"):
        find_modes(points, max_groups=20, groups=21)
    with pytest.raises(ValueError, match=r"1\.\.50 \(max_groups 100, 50 samples\), got 51"):
        find_modes(points, max_groups=100, groups=51)
    with pytest.raises(ValueError, match="max_groups must be 1 or more, got 0"):
        find_modes(points, max_groups=0)
    with pytest.raises(ValueError, match=r"shape \(N, D\), got \(0, 8\)"):
        find_modes(points[:0], max_groups=5)
    points[3, 3] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        find_modes(points, max_groups=5)
