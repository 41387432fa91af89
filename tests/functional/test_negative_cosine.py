import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from sslgh.functional import negative_cosine


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, z = (torch.randn(9, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    return p.requires_grad_(), z.requires_grad_()


def test_negative_cosine_equals_a_loop() -> None:
    p, z = pair()
    expected = [-(a @ b / (a.norm() * b.norm())) for a, b in zip(p, z, strict=True)]
    torch.testing.assert_close(negative_cosine(p, z), torch.stack(expected))


def test_negative_cosine_has_the_value_and_gradient_of_lightly() -> None:
    p, z = pair()
    ours, theirs = negative_cosine(p, z).mean(), NegativeCosineSimilarity()(p, z.detach())
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, p) for loss in (ours, theirs)))


def test_negative_cosine_sends_no_gradient_to_the_target() -> None:
    p, z = pair()
    assert torch.autograd.grad(negative_cosine(p, z).sum(), z, allow_unused=True) == (None,)


def test_negative_cosine_of_opposite_and_equal_vectors_is_plus_and_minus_one() -> None:
    p, z = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[2.0, 4.0], [-3.0, -6.0]])
    torch.testing.assert_close(negative_cosine(p, z), torch.tensor([-1.0, 1.0]))


def test_negative_cosine_gradient_agrees_with_finite_differences() -> None:
    p, z = pair()
    assert torch.autograd.gradcheck(lambda a: negative_cosine(a, z.detach()), p)


def test_negative_cosine_loses_nothing_to_half_precision_inputs() -> None:
    p, z = (t.detach().bfloat16() for t in pair())
    with torch.autocast("cpu", torch.bfloat16):
        half = negative_cosine(p, z)
    torch.testing.assert_close(half, negative_cosine(p.float(), z.float()), rtol=0, atol=0)


def test_negative_cosine_rejects_views_of_different_shape() -> None:
    with pytest.raises(ValueError, match="must share a shape"):
        negative_cosine(torch.ones(2, 3), torch.ones(3, 3))
