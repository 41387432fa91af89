import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.nn.functional import normalize

import sslgh.engine.monitor.labels as module
from sslgh.engine.monitor.labels import LabelMonitor, TrackedEmbeddings, labeled_health
from sslgh.functional import inter_class_uniformity, neighborhood_uniformity, purity
from sslgh.functional.groups import shot_groups
from sslgh.methods import MethodOutput, SimCLR
from sslgh.models import simclr_projector

COUNTS = torch.tensor([120, 40, 30, 6])
GROUPS = shot_groups(COUNTS)


def clusters(noise: float = 0.3, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(COUNTS)
    centers = torch.randn(4, d, generator=generator)
    z = centers[labels] + noise * torch.randn(len(labels), d, generator=generator)
    return 3 * z, labels


def test_neighbors_are_asked_without_the_sample_itself() -> None:
    z, labels = clusters(0.8)
    values = labeled_health(z, labels, GROUPS)
    rows, right = normalize(z), []
    for i, row in enumerate(rows):
        cosine = rows @ row
        cosine[i] = -torch.inf
        nearest = cosine.topk(20)
        votes = torch.zeros(4).index_add(0, labels[nearest.indices], (nearest.values / 0.1).exp())
        right.append(votes.argmax() == labels[i])
    hits = torch.stack(right).float()
    assert 0.3 < values["knn"] < 0.99
    assert values["knn"] == pytest.approx(hits.mean().item())
    by_class = [hits[labels == label].mean().item() for label in range(4)]
    assert values["knn_many"] == pytest.approx(by_class[0])
    assert values["knn_medium"] == pytest.approx((by_class[1] + by_class[2]) / 2)
    assert values["knn_few"] == pytest.approx(by_class[3])
    assert values["knn_balanced"] == pytest.approx(sum(by_class) / 4)


def test_noise_has_the_neighbors_of_chance_but_not_itself() -> None:
    labels = torch.arange(500) % 4
    z = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert labeled_health(z, labels, shot_groups(labels.bincount()))["knn"] < 0.35


def test_distances_are_between_the_means_of_normalized_embeddings() -> None:
    z, labels = clusters()
    values = labeled_health(z, labels, GROUPS)
    means = torch.stack([normalize(z[labels == label]).mean(0) for label in range(4)])
    inter, near = inter_class_uniformity(means), neighborhood_uniformity(means, 1)
    for name, distances in (("inter_class_uniformity", inter), ("neighborhood_uniformity", near)):
        assert values[name] == pytest.approx(distances.mean().item(), rel=1e-5)
        assert values[f"{name}_many"] == pytest.approx(distances[0].item(), rel=1e-5)
        assert values[f"{name}_medium"] == pytest.approx(distances[1:3].mean().item(), rel=1e-5)
        assert values[f"{name}_few"] == pytest.approx(distances[3].item(), rel=1e-5)


def test_surrogate_labels_are_compared_with_the_classes() -> None:
    z, labels = clusters()
    assert "nmi" not in labeled_health(z, labels, GROUPS)
    surrogate = torch.where(torch.arange(len(labels)) % 3 == 0, -1, (labels + 1) % 3)
    values = labeled_health(z, labels, GROUPS, surrogate=surrogate)
    assert values["nmi"] == pytest.approx(normalized_mutual_info_score(labels, surrogate))
    assert values["purity"] == purity(surrogate + 1, labels).item()


def test_what_cannot_be_computed_is_left_out() -> None:
    z, labels = clusters()
    head = labeled_health(z[:50], labels[:50], GROUPS)
    assert head["knn"] == head["knn_many"] == 1
    assert not any("few" in name or "uniformity" in name for name in head)
    assert labeled_health(z[:1], labels[:1], GROUPS) == {}
    assert labeled_health(z[:0], labels[:0], GROUPS, surrogate=labels[:0]) == {}


def monitor(counts: list[int]) -> tuple[LabelMonitor, dict[str, Tensor]]:
    """A monitor after some steps on the images of ``counts``, and the metrics of the last one."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    backbone = nn.Linear(2, 6)
    backbone.num_features = 6
    method = SimCLR(backbone, simclr_projector(6, hidden=4, out=3, layers=2))
    monitored = LabelMonitor(labels.numpy(), np.array(counts), method)
    generator = torch.Generator().manual_seed(0)
    values = {}
    for step in range(5):
        index = torch.randint(len(labels), (16,), generator=generator)
        features = torch.randn(16, 6, generator=generator) + labels[index, None]
        z = torch.randn(16, 3, generator=generator)
        output = MethodOutput(features.mean(), None, (z, z), features)
        values = monitored.update(output, index, logged=step == 4)
        assert bool(values) == (step == 4)
    return monitored, values


def test_accuracies_of_groups_are_means_over_their_classes_and_empty_groups_are_left_out() -> None:
    monitored, values = monitor([150, 120, 60])
    assert list(values) == ["online", "online_many", "online_medium"]
    accuracy = monitored.probe.class_accuracy
    assert values["online_many"] == (accuracy[0] + accuracy[1]) / 2
    assert values["online_medium"] == accuracy[2]


def test_a_class_without_images_is_in_no_group() -> None:
    monitored, values = monitor([0, 150, 120, 0, 10, 0])
    assert list(values) == ["online", "online_many", "online_few"]
    accuracy = monitored.probe.class_accuracy
    assert values["online_many"] == (accuracy[1] + accuracy[2]) / 2
    assert values["online_few"] == accuracy[4]
    assert "online_few" not in monitor([0, 150, 120])[1]


def test_classes_share_the_places_and_the_rare_are_there_whole(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_TRACKED", 50)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS.numpy()))
    tracked = TrackedEmbeddings(labels, 4, 2)
    chosen = torch.from_numpy(labels)[tracked.index]
    assert chosen.bincount().tolist() == [13, 13, 13, 6]
    assert len(tracked.index.unique()) == 45
    head = tracked.index[chosen == 0].numpy()
    ranks = np.searchsorted(np.flatnonzero(labels == 0), head)
    assert set(np.diff(ranks)) <= {9, 10}  # 120 / 13, over the whole of the class


def test_it_never_tracks_more_than_it_may(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_TRACKED", 50)
    assert len(TrackedEmbeddings(np.arange(300) % 49, 49, 2).index) == 50


def test_the_latest_embedding_of_tracked_samples_is_known(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_TRACKED", 4)
    tracked = TrackedEmbeddings(np.array([0] * 8 + [1] * 2), 2, 3)
    assert tracked.index.tolist() == [0, 4, 8, 9]
    z = torch.arange(30.0).view(10, 3)
    tracked.update(z[:5], torch.tensor([4, 5, 0, 6, 9]))
    tracked.update(z[5:8], torch.tensor([1, 4, 2]))
    rows, index = tracked.known()
    assert index.tolist() == [0, 4, 9]
    assert torch.equal(rows, z[[2, 6, 4]])


def test_its_state_is_the_memory_alone(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_TRACKED", 4)
    labels = np.array([0] * 8 + [1] * 2)
    tracked, restored = TrackedEmbeddings(labels, 2, 3), TrackedEmbeddings(labels, 2, 3)
    tracked.update(torch.randn(10, 3), torch.arange(10))
    assert set(tracked.state_dict()) == {"memory.rows", "memory.seen"}
    restored.load_state_dict(tracked.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(tracked.known(), restored.known(), strict=True))


def known_of_part(cuts: list[int]) -> tuple[Tensor, Tensor]:
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    rank = dist.get_rank() if dist.is_initialized() else 0
    tracked = TrackedEmbeddings(np.arange(12) % 5, 5, 3)
    z = torch.arange(36.0).view(12, 3)
    for index in (torch.arange(12), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])):
        local = slice(cuts[rank], cuts[rank + 1])
        tracked.update(z[local] + index[local, None], index[local])
    return tracked.known()


def test_process_zero_knows_the_embeddings_of_all(two_processes) -> None:
    (rows, index), (other, none) = two_processes(known_of_part, [0, 7, 12])
    expected, positions = known_of_part([0, 12])
    assert torch.equal(rows, expected)
    assert torch.equal(index, positions)
    assert len(other) == len(none) == 0
