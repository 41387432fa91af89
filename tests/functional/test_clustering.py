import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from sslgh.functional import normalized_mutual_information, purity


def labelings(first=5, second=8, n=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(first, (n,), generator=generator)
    noise = torch.randint(second, (n,), generator=generator)
    return a, torch.where(torch.rand(n, generator=generator) < 0.6, a, noise)


@pytest.mark.parametrize("shape", [(5, 8), (1, 4), (4, 1), (1, 1), (40, 3)])
def test_they_are_those_of_scikit_learn(shape):
    a, b = labelings(*shape)
    expected = normalized_mutual_info_score(a, b)
    assert normalized_mutual_information(a, b).item() == pytest.approx(expected, abs=1e-12)
    expected = contingency_matrix(a, b).max(1).sum() / len(a)
    assert purity(a, b).item() == pytest.approx(expected)


def test_names_of_labels_change_nothing():
    a, b = labelings()
    renamed = torch.tensor([70, 3, 0, 900, 12])[a]
    torch.testing.assert_close(
        normalized_mutual_information(renamed, b), normalized_mutual_information(a, b)
    )
    torch.testing.assert_close(purity(renamed, b), purity(a, b))


def test_information_is_mutual_and_purity_is_not():
    a, b = labelings()
    torch.testing.assert_close(
        normalized_mutual_information(a, b), normalized_mutual_information(b, a)
    )
    one_each = torch.arange(len(a))
    assert purity(one_each, a).item() == 1
    assert purity(torch.zeros_like(a), a).item() == a.bincount().max().item() / len(a)


def test_impossible_arguments_are_named():
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        purity(labels, labels[:2])
    with pytest.raises(ValueError, match="N > 0"):
        purity(labels[:0], labels[:0])
    with pytest.raises(ValueError, match="leave out the samples without a label"):
        normalized_mutual_information(labels, labels - 1)
