import numpy as np
import pytest
import torch

from sslgh.functional.effective_rank import effective_rank


def embeddings(n=40, d=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.arange(1.0, d + 1)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (9, 9)])
def test_it_is_the_formula_of_the_paper_on_both_sides_of_a_square(n, d):
    z = embeddings(n, d)
    singular = np.linalg.svd(z.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(z).item() == pytest.approx(expected, rel=1e-6)


def test_orthogonal_directions_of_one_length_count_each():
    basis = torch.linalg.qr(embeddings(20, 20)).Q[:5]
    assert effective_rank(basis).item() == pytest.approx(5, rel=1e-6)


def test_scale_and_rotation_change_nothing():
    z = embeddings()
    turn = torch.linalg.qr(embeddings(7, 7, seed=1)).Q
    torch.testing.assert_close(effective_rank(1e-3 * z @ turn), effective_rank(z))


def test_embeddings_in_one_point_have_rank_one_and_are_not_centered():
    point = embeddings(1, 64).expand(100, 64)
    assert effective_rank(point).item() == pytest.approx(1, abs=1e-5)
    near = point + 1e-3 * embeddings(100, 64, seed=2) / 64
    assert 1 < effective_rank(near).item() < 1.02
    assert effective_rank(near - near.mean(0)).item() > 30


def test_zeros_have_rank_one():
    assert effective_rank(torch.zeros(4, 3)).item() == 1


def test_a_row_that_is_not_finite_makes_it_nan_instead_of_an_error():
    z = embeddings()
    z[3, 2] = torch.inf
    assert effective_rank(z).isnan()


def test_half_precision_loses_nothing():
    z = embeddings().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = effective_rank(z)
    assert torch.equal(inside, effective_rank(z.float()))


def test_no_gradient_is_kept():
    assert not effective_rank(embeddings().requires_grad_()).requires_grad


def test_embeddings_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(N, D\) with N, D > 0, got \(0, 4\)"):
        effective_rank(torch.zeros(0, 4))
