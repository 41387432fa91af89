import math

import pytest
import torch
from torch import Tensor

from sslgh.functional import harmonization_loss, simplex_etf, sinkhorn, vertex_scores

PRIOR = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64)
VERTICES = simplex_etf(5, 8, generator=torch.Generator().manual_seed(0)).double()


def views(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z1, z2 = (torch.randn(n, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def transcription(z1: Tensor, z2: Tensor, iterations: int = 300) -> Tensor:
    """The official code's formulas, line by line, in loops and float64 (facts, 1.3 to 1.5)."""

    def scores(z: Tensor) -> Tensor:
        rows = []
        for sample in z:
            t = torch.stack([sample @ vertex for vertex in VERTICES])
            rows.append(t / t.norm())
        return torch.stack(rows)

    def labels(t: Tensor) -> Tensor:
        kernel = (t.detach() / 0.05).exp()
        n = len(t)
        r, c = torch.ones(5, dtype=torch.float64), torch.full((n,), 1 / n, dtype=torch.float64)
        for _ in range(iterations):
            r = PRIOR / (kernel.T @ c)
            c = (1 / n) / (kernel @ r)
        return n * c[:, None] * kernel * r

    t1, t2 = scores(z1), scores(z2)
    total = torch.zeros((), dtype=torch.float64)
    for label, prediction in ((labels(t1), t2), (labels(t2), t1)):
        for i in range(len(t1)):
            p = (prediction[i] / 0.1).exp() / (prediction[i] / 0.1).exp().sum()
            total = total - (label[i] * p.log()).sum() / len(t1)
    return total


def test_harmonization_equals_a_transcription_of_the_official_formulas() -> None:
    z1, z2 = views()
    ours, theirs = harmonization_loss(z1, z2, VERTICES, PRIOR), transcription(z1, z2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(theirs, (z1, z2))
    )


def test_harmonization_gradient_is_that_of_fixed_labels() -> None:
    z1, z2 = views(4)
    q1, q2 = (sinkhorn(vertex_scores(z.detach(), VERTICES), PRIOR) for z in (z1, z2))

    def with_fixed_labels(a: Tensor, b: Tensor) -> Tensor:
        p1, p2 = ((vertex_scores(z, VERTICES) / 0.1).log_softmax(1) for z in (a, b))
        return -(q1 * p2).sum(1).mean() - (q2 * p1).sum(1).mean()

    assert torch.autograd.gradcheck(with_fixed_labels, (z1, z2))
    ours = torch.autograd.grad(harmonization_loss(z1, z2, VERTICES, PRIOR), (z1, z2))
    torch.testing.assert_close(ours, torch.autograd.grad(with_fixed_labels(z1, z2), (z1, z2)))


def test_harmonization_is_the_sum_of_two_symmetric_terms() -> None:
    z1, z2 = views()
    torch.testing.assert_close(
        harmonization_loss(z1, z2, VERTICES, PRIOR), harmonization_loss(z2, z1, VERTICES, PRIOR)
    )
    vertices = torch.cat([simplex_etf(5, 4), torch.zeros(5, 4)], dim=1).double()
    outside = torch.eye(8, dtype=torch.float64)[5:]  # orthogonal to every vertex
    same = harmonization_loss(outside, outside, vertices, PRIOR)
    torch.testing.assert_close(same, torch.tensor(2 * math.log(5), dtype=torch.float64))


def test_harmonization_predicts_the_other_view_and_not_itself() -> None:
    z = VERTICES[[0, 0, 0, 1, 1, 2]]
    prior = torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    agreed = harmonization_loss(z, z, VERTICES, prior)
    swapped = harmonization_loss(z, z.roll(3, 0), VERTICES, prior)
    assert agreed < 0.1
    assert swapped > 10


def test_harmonization_follows_the_prior() -> None:
    z1, z2 = views(40)
    flat = torch.ones(5, dtype=torch.float64)
    assert (
        abs(
            harmonization_loss(z1, z2, VERTICES, PRIOR) - harmonization_loss(z1, z2, VERTICES, flat)
        )
        > 0.1
    )


def test_harmonization_ignores_the_length_of_embeddings_and_what_is_outside_the_span() -> None:
    z1, z2 = views()
    outside = torch.linalg.svd(VERTICES).Vh[4:].sum(0)
    torch.testing.assert_close(
        harmonization_loss(3 * z1 + outside, z2, VERTICES, PRIOR),
        harmonization_loss(z1, z2, VERTICES, PRIOR),
    )


def test_harmonization_ignores_the_numbering_of_vertices() -> None:
    z1, z2 = views()
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(
        harmonization_loss(z1, z2, VERTICES[order], PRIOR[order]),
        harmonization_loss(z1, z2, VERTICES, PRIOR),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_harmonization_loses_nothing_to_half_precision(dtype) -> None:
    z1, z2 = (z.detach().to(dtype) for z in views())
    vertices, prior = VERTICES.float(), PRIOR.float()
    with torch.autocast("cpu", torch.bfloat16):
        half = harmonization_loss(z1, z2, vertices, prior)
    assert torch.equal(half, harmonization_loss(z1.float(), z2.float(), vertices, prior))


def test_scores_of_a_vertex_are_its_cosines_inside_the_span() -> None:
    scores = vertex_scores(7 * VERTICES, VERTICES)
    torch.testing.assert_close(
        scores.diagonal(), torch.full((5,), math.sqrt(4 / 5), dtype=torch.float64)
    )
    torch.testing.assert_close(scores.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_scores_name_widths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(3, 7\) and \(5, 8\)"):
        vertex_scores(torch.ones(3, 7), VERTICES)


def test_harmonization_names_what_does_not_fit() -> None:
    z1, z2 = views()
    with pytest.raises(ValueError, match="views must share a shape"):
        harmonization_loss(z1, z2[:3], VERTICES, PRIOR)
    with pytest.raises(ValueError, match="temperature must be positive"):
        harmonization_loss(z1, z2, VERTICES, PRIOR, temperature=0)


def test_a_zero_embedding_has_no_scores_and_no_gradient() -> None:
    z = torch.zeros(3, 8, dtype=torch.float64)
    z[1, 0], z[2] = 1e-9, torch.arange(8)
    z.requires_grad_()
    scores = vertex_scores(z, VERTICES)
    assert torch.equal(scores[:2], torch.zeros(2, 5, dtype=torch.float64))
    loss = harmonization_loss(z, z.detach().roll(1, 0), VERTICES, PRIOR)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.equal(gradient[:2], torch.zeros(2, 8, dtype=torch.float64))
    assert 0 < gradient[2].norm() < 100


def test_the_pull_does_not_depend_on_the_number_of_vertices_once_epsilon_and_temperature_are_scaled() -> (
    None
):
    """Unscaled, ten vertices in 128 dimensions pull several times as strongly as a hundred."""
    generator = torch.Generator().manual_seed(2)
    z1 = torch.randn(256, 128, generator=generator)
    z2 = z1 + 0.5 * torch.randn(256, 128, generator=generator)

    def pull(vertices: int, scale: float) -> float:
        frame = simplex_etf(vertices, 128, generator=torch.Generator().manual_seed(0))
        z = z1.clone().requires_grad_()
        loss = harmonization_loss(
            z,
            z2,
            frame,
            torch.ones(vertices),
            epsilon=0.05 * scale,
            temperature=0.1 * scale,
            iterations=50,
        )
        return float(torch.autograd.grad(loss, z)[0].norm())

    paper = pull(100, 1.0)
    assert paper / 2 < pull(10, 10**0.5) < 2 * paper
    assert pull(10, 1.0) > 4 * paper
