import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics.cluster import contingency_matrix

from sslgh.functional import entropy, gini, purity


def labelings(first=5, second=8, n=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(first, (n,), generator=generator)
    noise = torch.randint(second, (n,), generator=generator)
    return a, torch.where(torch.rand(n, generator=generator) < 0.6, a, noise)


@pytest.mark.parametrize("shape", [(5, 8), (1, 4), (4, 1), (1, 1), (40, 3)])
def test_purity_is_that_of_the_contingency_table_of_scikit_learn(shape):
    a, b = labelings(*shape)
    expected = contingency_matrix(a, b).max(1).sum() / len(a)
    assert purity(a, b).item() == pytest.approx(expected)


def test_names_of_labels_change_nothing():
    a, b = labelings()
    renamed = torch.tensor([70, 3, 0, 900, 12])[a]
    torch.testing.assert_close(purity(renamed, b), purity(a, b))


def test_purity_depends_on_which_labeling_is_the_clustering():
    a, _ = labelings()
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
        purity(labels, labels - 1)


def counts(seed=0):
    return torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(seed))


def test_entropy_is_that_of_scipy_in_nats():
    assert entropy(counts()).item() == pytest.approx(scipy_entropy(counts().numpy()))


def test_gini_is_the_mean_difference_over_twice_the_mean():
    x = counts().double()
    expected = (x[:, None] - x).abs().mean() / (2 * x.mean())
    torch.testing.assert_close(gini(counts()), expected)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_equal_classes_and_a_single_one_are_the_ends(k):
    equal, single = torch.full((k,), 7), torch.arange(k) == k - 1
    assert entropy(equal).item() == pytest.approx(math.log(k))
    assert gini(equal).item() == pytest.approx(0, abs=1e-12)
    assert entropy(single.int()).item() == 0
    assert gini(single.int()).item() == pytest.approx(1 - 1 / k)


def test_order_and_size_change_nothing():
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for measure in (entropy, gini):
        torch.testing.assert_close(measure(counts()[order]), measure(counts()))
        torch.testing.assert_close(measure(0.01 * counts().double()), measure(counts()))


def test_empty_classes_change_the_gini_alone():
    padded = torch.cat([counts(), torch.zeros(30, dtype=torch.int64)])
    torch.testing.assert_close(entropy(padded), entropy(counts()))
    torch.testing.assert_close(gini(padded), (1 + gini(counts())) / 2)


def test_counts_of_another_shape_are_refused():
    for measure in (entropy, gini):
        with pytest.raises(ValueError, match=r"counts must be \(K,\), got \(2, 2\)"):
            measure(torch.ones(2, 2))
