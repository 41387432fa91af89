import builtins

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from sslgh.harmonize.kmeans import faiss_device, spherical_kmeans


def blobs(
    sizes: list[int], dim: int, spread: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = F.normalize(torch.randn(len(sizes), dim, generator=generator), dim=1)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = torch.randn(len(labels), dim, generator=generator) * spread / dim**0.5
    return means[labels] + noise, labels


@pytest.mark.parametrize("seed", range(3))
def test_many_clusters_never_mix_separated_blobs_even_rare_ones(seed):
    points, truth = blobs([2000, 60, 30, 15], 32, 0.3, seed)
    _, labels = spherical_kmeans(points, 40, seed=seed)
    for k in labels.unique():
        assert len(truth[labels == k].unique()) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_start_reaches_rare_blobs_that_a_random_start_would_miss(seed):
    points, truth = blobs([5000, 10, 10, 10, 10], 16, 0.03, seed)
    _, labels = spherical_kmeans(points, 16, seed=seed)
    owners = [set(labels[truth == k].tolist()) for k in range(5)]
    assert sum(map(len, owners)) == len(set.union(*owners))


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_as_good_as_that_of_scikit_learn(seed):
    points, _ = blobs([100] * 10, 16, 1.0, seed)
    unit = F.normalize(points, dim=1)
    centroids, labels = spherical_kmeans(points, 30, seed=seed)
    oracle = KMeans(30, n_init=1, random_state=seed).fit(unit.numpy())
    chosen = F.normalize(torch.from_numpy(oracle.cluster_centers_), dim=1)[oracle.labels_]
    assert float((unit - centroids[labels]).square().sum()) < 1.03 * float(
        (unit - chosen).square().sum()
    )


def test_every_point_has_its_nearest_centroid_and_every_centroid_is_the_mean_of_its_points():
    points, _ = blobs([60] * 8, 32, 0.3)
    centroids, labels = spherical_kmeans(points, 8, seed=0)
    unit = F.normalize(points, dim=1)
    assert labels.dtype == torch.int64
    assert torch.equal((unit @ centroids.T).argmax(1), labels)
    means = torch.stack([unit[labels == k].mean(0) for k in range(8)])
    torch.testing.assert_close(centroids, F.normalize(means, dim=1))


def test_no_point_is_left_out_of_a_large_cluster():
    # FAISS's default would keep 256 of the points of each cluster and see another mean.
    points, _ = blobs([3000], 4, 1.0)
    centroids, _ = spherical_kmeans(points, 1, seed=0)
    torch.testing.assert_close(centroids[0], F.normalize(F.normalize(points, dim=1).mean(0), dim=0))


def test_the_length_of_a_point_does_not_count():
    points, _ = blobs([50] * 4, 16, 0.8)
    longer = points * torch.logspace(-2, 2, len(points))[:, None]
    for one, other in zip(
        spherical_kmeans(points, 9, seed=1), spherical_kmeans(longer, 9, seed=1), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_start():
    points, _ = blobs([500], 16, 3.0)
    first, second = (spherical_kmeans(points, 20, seed=3) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(spherical_kmeans(points, 20, seed=4)[1], first[1])


def test_a_warm_start_keeps_the_numbers_of_the_clusters():
    points, truth = blobs([60] * 8, 32, 0.3)
    means = torch.stack([points[truth == k].mean(0) for k in range(8)])
    assert torch.equal(spherical_kmeans(points, 8, seed=5, start=means)[1], truth)


def test_missing_start_centroids_are_added():
    points, truth = blobs([60] * 8, 32, 0.3)
    centroids, labels = spherical_kmeans(points, 8, seed=0, start=points[:1])
    assert centroids.shape == (8, 32)
    assert adjusted_rand_score(truth, labels) > 0.8


@pytest.mark.parametrize("count", [1, 5, 6, 40, 99, 100])
def test_duplicates_and_as_many_clusters_as_points_are_no_trouble(count, capfd):
    points = blobs([5], 8, 1.0)[0].repeat(20, 1)
    centroids, labels = spherical_kmeans(points, count, seed=0)
    assert torch.isfinite(centroids).all()
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(count))
    assert labels.min() >= 0
    assert labels.max() < count
    for k in range(5):  # equal points, equal labels
        assert len(labels[k::5].unique()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [60, 99, 100])
def test_nearly_as_many_clusters_as_distinct_points_are_no_trouble(count, capfd):
    points, _ = blobs([100], 8, 2.0)
    centroids, labels = spherical_kmeans(points, count, seed=0)
    assert torch.isfinite(centroids).all()
    assert len(labels.unique()) >= 0.9 * count
    assert capfd.readouterr() == ("", "")


def test_half_precision_points_and_numpy_counts_are_taken():
    points, truth = blobs([60] * 2, 32, 0.3)
    centroids, labels = spherical_kmeans(points.bfloat16(), np.int64(2), seed=0)
    assert centroids.dtype == torch.float32
    assert adjusted_rand_score(truth, labels) == 1


def test_points_with_a_gradient_are_taken_and_stay_as_they_were():
    points = blobs([60] * 4, 32, 0.3)[0].requires_grad_()
    before = points.detach().clone()
    assert not spherical_kmeans(points, 4, seed=0)[0].requires_grad
    assert torch.equal(points.detach(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(value):
    points, _ = blobs([20], 4, 1.0)
    start = torch.full((2, 4), value)
    with pytest.raises(ValueError, match="start must be finite"):
        spherical_kmeans(points, 2, seed=0, start=start)
    points[3, 1] = value
    with pytest.raises(ValueError, match="points must be finite"):
        spherical_kmeans(points, 2, seed=0)


@pytest.mark.parametrize("count", [0, 21])
def test_an_impossible_number_of_clusters_is_refused_and_named(count):
    with pytest.raises(ValueError, match=rf"1\.\.20 \(the points\), got {count}"):
        spherical_kmeans(torch.randn(20, 4), count, seed=0)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, D\), got \(5,\)"):
        spherical_kmeans(torch.ones(5), 1, seed=0)
    with pytest.raises(ValueError, match=r"at most 2, 4\), got \(3, 4\)"):
        spherical_kmeans(torch.ones(5, 4), 2, seed=0, start=torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"at most 2, 4\), got \(2, 3\)"):
        spherical_kmeans(torch.ones(5, 4), 2, seed=0, start=torch.ones(2, 3))


def test_the_device_is_named():
    assert faiss_device() in {"cpu", "gpu"}


@pytest.mark.parametrize("failure", [ImportError("no module"), RuntimeError("no libcublas")])
def test_a_missing_faiss_is_reported_in_a_sentence(monkeypatch, failure):
    real = builtins.__import__

    def without_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise failure
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match=r"install faiss-gpu .* or faiss-cpu"):
        faiss_device()
