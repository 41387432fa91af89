import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from sslgh.functional import (
    balanced_contrastive,
    logit_adjusted_cross_entropy,
    nt_xent,
    rebalanced_contrastive,
    supervised_contrastive,
)

COUNTS = torch.tensor([60.0, 30.0, 8.0, 2.0], dtype=torch.float64)


def problem(n: int = 7, views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images of classes 0 to 2, prototypes of 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, views, 5, dtype=torch.float64, generator=generator).requires_grad_()
    prototypes = torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    return z, torch.randint(3, (n,), generator=generator), prototypes


def members(z: Tensor, labels: Tensor, prototypes: Tensor | None) -> tuple[list, list[int]]:
    """All views, image by image, then the prototypes; unit vectors and classes."""
    vectors = [view for image in z for view in image]
    classes = [y for y in labels.tolist() for _ in range(z.shape[1])]
    if prototypes is not None:
        vectors, classes = vectors + list(prototypes), classes + list(range(len(prototypes)))
    return [v / v.norm() for v in vectors], classes


def images(anchors: list[Tensor], z: Tensor) -> Tensor:
    return torch.stack(anchors).view(z.shape[:2]).mean(1)


def supcon_in_loops(z: Tensor, labels: Tensor, t: float) -> Tensor:
    u, classes = members(z, labels, None)
    anchors = []
    for i in range(len(u)):
        others = [k for k in range(len(u)) if k != i]
        total = sum((u[i] @ u[k] / t).exp() for k in others)
        mates = [p for p in others if classes[p] == classes[i]]
        each = [-((u[i] @ u[p] / t).exp() / total).log() for p in mates]
        anchors.append(sum(each) / len(mates) if mates else 0 * total)
    return images(anchors, z)


def bcl_in_loops(z: Tensor, labels: Tensor, prototypes: Tensor, t: float) -> Tensor:
    """Section 2.1 of the facts: every term divided by the count of its class in the contrast set."""
    u, classes = members(z, labels, prototypes)
    anchors = []
    for i in range(z.shape[0] * z.shape[1]):
        others = [k for k in range(len(u)) if k != i]
        total = torch.zeros((), dtype=torch.float64)
        for k in others:
            count = classes.count(classes[k]) - (classes[k] == classes[i])
            total = total + (u[i] @ u[k] / t).exp() / count
        mates = [p for p in others if classes[p] == classes[i]]
        anchors.append(-sum(u[i] @ u[p] / t - total.log() for p in mates) / len(mates))
    return images(anchors, z)


def rcl_in_loops(
    z: Tensor, labels: Tensor, prototypes: Tensor, t: float, gamma: float, scale: float
) -> Tensor:
    """Candidates R1 and R4 of the facts, with vectors that are scaled one by one."""
    u, classes = members(z, labels, prototypes)
    u = [scale * v for v in u]
    anchors = []
    for i in range(z.shape[0] * z.shape[1]):
        others = [k for k in range(len(u)) if k != i]
        total = torch.zeros((), dtype=torch.float64)
        for j in range(len(prototypes)):
            terms = [(u[i] @ u[k] / t).exp() for k in others if classes[k] == j]
            total = total + COUNTS[j] ** gamma * sum(terms) / len(terms)
        mates = [p for p in others if classes[p] == classes[i]]
        anchors.append(-sum(((u[i] @ u[p] / t).exp() / total).log() for p in mates) / len(mates))
    return images(anchors, z)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_supervised_contrastive_equals_its_equation_in_loops(views) -> None:
    z, labels, _ = problem(views=views)
    found = supervised_contrastive(z, labels, temperature=0.2)
    torch.testing.assert_close(found, supcon_in_loops(z, labels, 0.2))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_balanced_contrastive_equals_its_formula_in_loops(views) -> None:
    z, labels, prototypes = problem(views=views)
    found = balanced_contrastive(z, labels, prototypes, temperature=0.2)
    torch.testing.assert_close(found, bcl_in_loops(z, labels, prototypes, 0.2))


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("gamma", "scale"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 1.7)])
def test_rebalanced_contrastive_equals_its_formula_in_loops(views, gamma, scale) -> None:
    z, labels, prototypes = problem(views=views)
    found = rebalanced_contrastive(
        z, labels, prototypes, COUNTS, temperature=0.2, gamma=gamma, scale=scale
    )
    expected = rcl_in_loops(z, labels, prototypes, 0.2, gamma, scale)
    torch.testing.assert_close(found, expected)


def test_with_every_image_its_own_class_it_has_the_value_and_gradient_of_lightlys_nt_xent() -> None:
    z, _, _ = problem(16)
    ours = supervised_contrastive(z, torch.arange(16), temperature=0.2)
    torch.testing.assert_close(ours, nt_xent(z[:, 0], z[:, 1], temperature=0.2))
    theirs = NTXentLoss(temperature=0.2)(z[:, 0], z[:, 1])
    torch.testing.assert_close(ours.mean(), theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, z) for loss in (ours.mean(), theirs)), rtol=1e-6, atol=1e-9
    )


def test_of_images_that_cannot_be_distinguished_it_is_log_of_the_candidates() -> None:
    same, labels = torch.ones(6, 2, 4), torch.tensor([0, 0, 1, 1, 1, 2])
    found = supervised_contrastive(same, labels, temperature=0.07)
    torch.testing.assert_close(found, torch.full((6,), math.log(11)))
    found = balanced_contrastive(same, labels, torch.ones(5, 4), temperature=0.07)
    torch.testing.assert_close(found, torch.full((6,), math.log(5)))


def test_a_single_image_among_prototypes_is_classified_by_cosine() -> None:
    z, _, prototypes = problem(1, views=1)
    logits = normalize(z[:, 0]) @ normalize(prototypes).T / 0.3
    for y in range(4):
        label = torch.tensor([y])
        found = balanced_contrastive(z, label, prototypes, temperature=0.3)
        torch.testing.assert_close(found, cross_entropy(logits, label, reduction="none"))
        found = rebalanced_contrastive(z, label, prototypes, COUNTS, temperature=0.3)
        adjusted = logit_adjusted_cross_entropy(logits, label, COUNTS)
        torch.testing.assert_close(found, adjusted + COUNTS[y].log())


def test_rebalanced_without_balance_is_balanced_to_the_last_bit() -> None:
    z, labels, prototypes = problem()
    for counts in (COUNTS, torch.tensor([60.0, 30.0, 8.0, 0.0], dtype=torch.float64)):
        found = rebalanced_contrastive(z, labels, prototypes, counts, temperature=0.1, gamma=0.0)
        assert torch.equal(found, balanced_contrastive(z, labels, prototypes, temperature=0.1))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_scale_is_a_temperature_and_nothing_else(scale) -> None:
    z, labels, prototypes = problem()

    def value_and_gradient(**settings: float) -> tuple[Tensor, ...]:
        loss = rebalanced_contrastive(z, labels, prototypes, COUNTS, **settings)
        return loss, *torch.autograd.grad(loss.sum(), (z, prototypes))

    torch.testing.assert_close(
        value_and_gradient(temperature=0.1, scale=scale),
        value_and_gradient(temperature=0.1 / scale**2),
        rtol=1e-13,
        atol=1e-13,
    )


def test_counts_and_shares_differ_by_a_constant_without_gradient() -> None:
    z, labels, prototypes = problem()
    counts, shares = (
        rebalanced_contrastive(z, labels, prototypes, n, temperature=0.2, gamma=0.5)
        for n in (COUNTS, COUNTS / 100)
    )
    torch.testing.assert_close(counts - shares, torch.full((7,), math.log(10)).double())
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), (z, prototypes)) for loss in (counts, shares))
    )


def test_a_class_of_count_zero_leaves_the_denominator() -> None:
    z, labels, prototypes = problem()
    counts = torch.tensor([60, 30, 8, 0])
    found = rebalanced_contrastive(z, labels, prototypes, counts, temperature=0.2)
    torch.testing.assert_close(
        found,
        rebalanced_contrastive(z, labels, prototypes[:3], counts[:3], temperature=0.2),
    )
    gradients = torch.autograd.grad(found.sum(), (z, prototypes))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[1][3] == 0).all()
    assert (gradients[1][:3] != 0).all()


def test_more_copies_of_a_rival_count_in_the_plain_loss_only() -> None:
    z, _, prototypes = problem(4, views=1)
    labels = torch.tensor([0, 1, 1, 2])
    prototypes = torch.cat([z[0], prototypes[1:]])
    more, again = torch.cat([z, z[:1], z[:1]]), torch.cat([labels, torch.tensor([0, 0])])
    torch.testing.assert_close(
        balanced_contrastive(more, again, prototypes, temperature=0.2)[1:4],
        balanced_contrastive(z, labels, prototypes, temperature=0.2)[1:],
    )
    few = supervised_contrastive(z, labels, temperature=0.2)[1:3]
    assert (supervised_contrastive(more, again, temperature=0.2)[1:3] > few).all()


@pytest.mark.parametrize(("gamma", "ratio"), [(0.0, 1.0), (0.5, 10.0), (1.0, 100.0)])
def test_a_common_class_pushes_rare_anchors_harder_when_rebalanced(gamma, ratio) -> None:
    # Far from its rival each anchor is pushed in proportion to the rival's share of the sum.
    z, labels = torch.eye(2, dtype=torch.float64)[:, None], torch.tensor([0, 1])
    prototypes = torch.eye(2, dtype=torch.float64).requires_grad_()
    counts = torch.tensor([1000, 10])
    losses = (
        rebalanced_contrastive(
            z[:1], labels[:1], prototypes, counts, temperature=0.02, gamma=gamma
        ),
        rebalanced_contrastive(
            z[1:], labels[1:], prototypes, counts, temperature=0.02, gamma=gamma
        ),
    )
    common, rare = (torch.autograd.grad(loss.sum(), prototypes)[0] for loss in losses)
    torch.testing.assert_close(rare[0].norm() / common[1].norm(), torch.tensor(ratio**2).double())


def test_their_gradients_agree_with_finite_differences() -> None:
    z, labels, prototypes = problem(4)
    counts = torch.tensor([60.0, 30.0, 8.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: supervised_contrastive(a, labels, temperature=0.3), z)
    assert torch.autograd.gradcheck(
        lambda a, b: balanced_contrastive(a, labels, b, temperature=0.3), (z, prototypes)
    )
    assert torch.autograd.gradcheck(
        lambda a, b: rebalanced_contrastive(a, labels, b, counts, temperature=0.3, gamma=0.5),
        (z, prototypes),
    )


def test_an_anchor_without_a_mate_gives_zero_and_no_gradient() -> None:
    z, _, _ = problem(3, views=1)
    loss = supervised_contrastive(z, torch.tensor([0, 0, 1]), temperature=0.1)
    assert loss[2] == 0
    assert (loss[:2] > 0).all()
    (gradient,) = torch.autograd.grad(loss[2], z, retain_graph=True)
    assert (gradient == 0).all()


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_a_batch_without_any_mate_is_zero_with_a_finite_gradient(labels) -> None:
    z, _, _ = problem(len(labels), views=1)
    loss = supervised_contrastive(z, torch.tensor(labels), temperature=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_the_order_of_the_views_does_not_matter() -> None:
    z, labels, prototypes = problem(views=3)
    torch.testing.assert_close(
        supervised_contrastive(z.flip(1), labels, temperature=0.2),
        supervised_contrastive(z, labels, temperature=0.2),
    )
    torch.testing.assert_close(
        balanced_contrastive(z.flip(1), labels, prototypes, temperature=0.2),
        balanced_contrastive(z, labels, prototypes, temperature=0.2),
    )


def test_they_name_what_does_not_fit() -> None:
    z, labels, prototypes = problem()
    with pytest.raises(
        ValueError, match=r"expected z \(N, V, D\) with labels \(N,\), got \(7, 5\)"
    ):
        supervised_contrastive(z[:, 0], labels, temperature=0.1)
    with pytest.raises(ValueError, match=r"got \(7, 2, 5\) and \(6,\)"):
        supervised_contrastive(z, labels[:6], temperature=0.1)
    with pytest.raises(ValueError, match="labels must be integers"):
        supervised_contrastive(z, labels.double(), temperature=0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        supervised_contrastive(z, labels, temperature=0.0)
    with pytest.raises(ValueError, match=r"proxies must be \(4, 5\), got \(4, 3\)"):
        balanced_contrastive(z, labels, prototypes[:, :3], temperature=0.1)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        rebalanced_contrastive(z, labels, prototypes, COUNTS[:3], temperature=0.1)
    with pytest.raises(ValueError, match="scale must be positive"):
        rebalanced_contrastive(z, labels, prototypes, COUNTS, temperature=0.1, scale=0)
    with pytest.raises(ValueError, match="gamma must not be negative"):
        rebalanced_contrastive(z, labels, prototypes, COUNTS, temperature=0.1, gamma=-1)
