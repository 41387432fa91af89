import itertools

import pytest
import torch
from torch.nn.functional import normalize

from sslgh.functional.tightness import class_tightness


def test_it_is_the_mean_squared_distance_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (40,), generator=generator)
    for label, got in enumerate(class_tightness(z, labels, 4)):
        rows = normalize(z[labels == label])
        pairs = [(a - b).square().sum().item() for a, b in itertools.combinations(rows, 2)]
        assert got.item() == pytest.approx(sum(pairs) / len(pairs))


def test_it_does_not_flatter_small_classes():
    generator = torch.Generator().manual_seed(1)
    center = normalize(torch.randn(8, generator=generator), dim=0)
    z = center + 0.3 * torch.randn(20_000, 8, generator=generator)
    fives = class_tightness(z, torch.arange(20_000) // 5, 4000).mean()
    whole = class_tightness(z, torch.zeros(20_000, dtype=torch.int64), 1)[0]
    assert fives.item() == pytest.approx(whole.item(), rel=0.02)


def test_it_ignores_the_length_of_the_embeddings():
    z, labels = torch.randn(12, 4), torch.arange(12) % 3
    scale = torch.rand(12, 1) + 0.1
    torch.testing.assert_close(class_tightness(z, labels, 3), class_tightness(scale * z, labels, 3))


def test_tight_classes_keep_their_digits():
    z = torch.tensor([[1.0, 1e-4], [1.0, -1e-4]])
    assert class_tightness(z, torch.tensor([0, 0]), 1).item() == pytest.approx(4e-8, rel=1e-3)


def test_classes_of_one_image_have_none():
    assert class_tightness(torch.randn(1, 3), torch.tensor([1]), 3).isnan().all()


def test_half_precision_loses_nothing():
    z, labels = torch.randn(30, 6).bfloat16(), torch.arange(30) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = class_tightness(z, labels, 2)
    assert torch.equal(inside, class_tightness(z.float(), labels, 2))


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(4,\)"):
        class_tightness(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), 2)
