"""Statistics of paired blocks, against SciPy and against loops written from the definitions."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from sslgh.studies.paired import MOST_BLOCKS, holm, paired_difference, sign_flip_p


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1, n).round(2)


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sign_flip_p_is_the_permutation_test_of_scipy(n, seed) -> None:
    values = drawn(n, seed)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_p_counts_all_patterns(seed) -> None:
    values = drawn(7, seed)
    means = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=7)]
    observed = abs(values.sum())
    assert sign_flip_p(values) == np.mean([mean >= observed - 1e-9 for mean in means])


def test_eight_blocks_that_agree_have_the_smallest_p() -> None:
    assert sign_flip_p(np.array([1.0, 2, 3, 1, 2, 3, 1, 2])) == 2 / 256
    assert sign_flip_p(np.array([-0.1] * 8)) == 2 / 256  # ties that rounding could break
    assert sign_flip_p(np.zeros(8)) == 1


def test_the_difference_has_the_standard_error_of_the_mean() -> None:
    values = drawn(8, 5)
    found = paired_difference(values.tolist())
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(stats.sem(values))
    assert paired_difference([1.5]) == ((1.5,), 1.5, None, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closure_of_bonferroni(seed) -> None:
    ps = (np.random.default_rng(seed).random(5) ** 3).tolist()
    # A hypothesis is rejected if every intersection that contains it is, by Bonferroni.
    expected = [
        max(
            min(1, len(others) * min(ps[i] for i in others))
            for size in range(1, 6)
            for others in combinations(range(5), size)
            if own in others
        )
        for own in range(5)
    ]
    assert holm(ps) == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, MOST_BLOCKS + 1])
def test_a_number_of_blocks_without_an_exact_test_is_refused(n) -> None:
    with pytest.raises(ValueError, match=f"takes 1 to 20 blocks, got {n}"):
        sign_flip_p(np.ones(n))
