import pytest
import torch

from sslgh.classify import OBJECTIVES
from sslgh.classify.stacked_loss import stacked_cross_entropy, stacked_margins

NAMES, TAUS = list(OBJECTIVES), (0.0, 0.5, 1.0)
HEADS = [(name, tau) for name in NAMES for tau in TAUS]


def stack(heads, prior, *, deferred=False):
    margins = [
        OBJECTIVES[name].margins_of(prior, tau=tau, num_samples=100, deferred=deferred)
        for name, tau in heads
    ]
    return stacked_margins(margins, [OBJECTIVES[name].focus for name, _ in heads])


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("shares", [[0.6, 0.3, 0.08, 0.02], [0.6, 0.3, 0.0, 0.1]])
def test_every_head_has_the_loss_and_gradient_of_its_objective(shares, deferred):
    prior = torch.tensor(shares, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shape = 2, len(HEADS), 4, 9
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits[1, ..., 0] *= 100  # sure of itself
    labels = torch.tensor([0, 1, 3] * 6).view(2, 9)
    logits.requires_grad_()
    loss = stacked_cross_entropy(logits, labels, stack(HEADS, prior, deferred=deferred))
    assert loss.shape == (2, len(HEADS))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    for h, (name, tau) in enumerate(HEADS):
        alone = logits[:, h].mT.detach().requires_grad_()
        expected = OBJECTIVES[name].loss(
            alone.flatten(0, 1),
            labels.flatten(),
            prior,
            tau=tau,
            num_samples=100,
            deferred=deferred,
        )
        expected = expected.view(2, 9).mean(1)
        torch.testing.assert_close(loss[:, h], expected)
        torch.testing.assert_close(
            gradient[:, h].mT, torch.autograd.grad(expected.sum(), alone)[0], atol=1e-9, rtol=1e-7
        )
