import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from sslgh.data.image_set import ImageSet
from sslgh.engine.monitor.refresh import describe_refresh, surrogate_health
from sslgh.functional import entropy, gini
from sslgh.harmonize import GeometricHarmonizer


def refreshed(labels: np.ndarray) -> GeometricHarmonizer:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 6, generator=generator)
    z = centers[torch.from_numpy(labels)] + 0.05 * torch.randn(len(labels), 6, generator=generator)
    harmonizer = GeometricHarmonizer(len(labels), 6, num_vertices=5, classes=3, visibility=1.0)
    harmonizer.observe(z, torch.arange(len(labels)))
    harmonizer.begin_epoch(0)
    return harmonizer


def test_a_refresh_whose_clusters_do_not_recur_says_so_in_one_sentence() -> None:
    z = torch.randn(280, 6, generator=torch.Generator().manual_seed(0))
    harmonizer = GeometricHarmonizer(280, 6, num_vertices=5)
    harmonizer.observe(z, torch.arange(280))
    harmonizer.begin_epoch(0)
    images = ImageSet(np.zeros((280, 1, 1, 3), np.uint8), None, (), tuple(map(str, range(280))))
    values, text = describe_refresh(harmonizer, images)
    assert values["accepted"] is False
    assert "kinds of images are not visible in the embeddings" in text


def test_a_refresh_is_logged_with_its_health_and_against_the_labels() -> None:
    labels = np.repeat([0, 1, 2], [200, 60, 20])
    images = ImageSet(
        np.zeros((280, 1, 1, 3), np.uint8), labels, ("a", "b", "c"), tuple(map(str, range(280)))
    )
    harmonizer = refreshed(labels)
    values, text = describe_refresh(harmonizer, images, torch.full((280,), -1))
    assert values["nmi"] == values["purity"] == 1
    assert values["entropy"] == pytest.approx(entropy(torch.tensor([200, 60, 20])).item())
    assert values["gini"] == pytest.approx(gini(torch.tensor([200, 60, 20])).item())
    assert values["empty"] == 2
    assert values["refresh_nmi"] == 0
    assert 0 < values["effective_samples"] < 1
    assert "NMI 1.000" in text
    assert values["accepted"] is True
    assert "visibility 1.00, 3 surrogate classes" in text
    unlabeled = ImageSet(images.images, None, (), images.names)
    values, _ = describe_refresh(harmonizer, unlabeled)
    assert not {"nmi", "purity", "refresh_nmi"} & set(values)
    assert values["empty"] == 2


def test_labelings_are_compared_whatever_their_names() -> None:
    generator = torch.Generator().manual_seed(0)
    before, labels = (torch.randint(-1, 4, (90,), generator=generator) for _ in range(2))
    health = surrogate_health(labels, torch.ones(90), num_vertices=4, before=before)
    assert health["refresh_nmi"] == pytest.approx(normalized_mutual_info_score(before, labels))
    assert surrogate_health(labels, torch.ones(90), num_vertices=4, before=3 - labels)[
        "refresh_nmi"
    ] == pytest.approx(1)


def test_equal_weights_keep_all_samples() -> None:
    health = surrogate_health(torch.zeros(9, dtype=torch.int64), torch.ones(9), num_vertices=2)
    assert health["weight_std"] == 0
    assert health["effective_samples"] == 1


def test_the_effective_share_is_one_over_one_plus_the_variance() -> None:
    weight = torch.rand(50, generator=torch.Generator().manual_seed(0))
    weight /= weight.mean()
    health = surrogate_health(torch.zeros(50, dtype=torch.int64), weight, num_vertices=2)
    assert health["effective_samples"] == pytest.approx(1 / (1 + health["weight_std"] ** 2))


def test_no_classes_yet_are_one() -> None:
    health = surrogate_health(torch.full((9,), -1), torch.ones(9), num_vertices=4)
    assert (health["entropy"], health["gini"], health["empty"]) == (0, 0, 3)
