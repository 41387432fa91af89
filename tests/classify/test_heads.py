import pytest
import torch

from sslgh.classify import OBJECTIVES
from sslgh.classify.heads import HeadwiseAdam, stacked_cross_entropy, stacked_margins


def test_every_head_takes_the_steps_of_torch_s_adam_with_its_own_rate_and_decay():
    generator = torch.Generator().manual_seed(0)
    rates, decays = torch.tensor([1e-3, 0.1, 0.1]), torch.tensor([0.0, 0.5, 1e-3])
    weight, bias = (
        torch.randn(2, 3, 4, 5, generator=generator),
        torch.randn(2, 3, 4, generator=generator),
    )
    heads = []
    for h in range(3):
        parts = [part[:, h].clone().requires_grad_() for part in (weight, bias)]
        groups = [{"params": [parts[0]], "weight_decay": decays[h].item()}, {"params": [parts[1]]}]
        heads.append((parts, torch.optim.Adam(groups, lr=rates[h].item())))
    ours = HeadwiseAdam([weight, bias], lr=rates, weight_decay=[decays, torch.zeros(3)])
    for step in range(30):
        factor = 0.9**step
        gradients = [torch.randn(p.shape, generator=generator) for p in (weight, bias)]
        if step == 3:
            gradients = [torch.zeros_like(gradient) for gradient in gradients]
        for h, (parts, adam) in enumerate(heads):
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = gradient[:, h].clone()
            for group in adam.param_groups:
                group["lr"] = rates[h].item() * factor
            adam.step()
        ours.step(gradients, factor=factor)
    for h, (parts, _) in enumerate(heads):
        torch.testing.assert_close(weight[:, h], parts[0].detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(bias[:, h], parts[1].detach(), atol=1e-6, rtol=1e-5)


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
