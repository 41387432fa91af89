import torch

from sslgh.classify.heads import HeadwiseAdam


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
