import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslgh.methods.moco_v3 import MoCoV3
from sslgh.models import build_backbone


def build(**settings) -> MoCoV3:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = MoCoV3.projector_spec.build(backbone, hidden=32, out=16)
    return MoCoV3(backbone, projector, **settings).double()


def transformer(**settings) -> MoCoV3:
    torch.manual_seed(0)
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    backbone = VisionTransformer(img_size=8, patch_size=4, **shape)
    projector = MoCoV3.projector_spec.build(backbone, hidden=32, out=16)
    return MoCoV3(backbone, projector, **settings).double()


def views(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def algorithm_one(method: MoCoV3, x1: Tensor, x2: Tensor, tau: float) -> Tensor:
    """The paper's Algorithm 1; both views in one pass, as here."""
    q1, q2 = method.predictor(method.projector(method.backbone(torch.cat([x1, x2])))).chunk(2)
    k1, k2 = method.teacher(torch.cat([x1, x2])).detach().chunk(2)

    def ctr(q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q) @ F.normalize(k).T
        return 2 * tau * F.cross_entropy(logits / tau, torch.arange(len(q)))

    return ctr(q1, k2) + ctr(q2, k1)


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_it_has_the_loss_and_gradient_of_the_papers_algorithm(tau) -> None:
    method, other = build(temperature=tau), build()
    losses = method(views()).loss, algorithm_one(other, *views(), tau)
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, [p for p in each.parameters() if p.requires_grad])
        for loss, each in zip(losses, (method, other), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_the_temperature_of_the_paper_depends_on_the_backbone() -> None:
    assert build().temperature == 1.0
    assert transformer().temperature == 0.2
    assert transformer(temperature=0.7).temperature == 0.7


def test_the_momentum_rises_to_one_along_a_half_cosine() -> None:
    for done in (1 / 3, 0.5, 0.9, 1.0):
        method = build(momentum=0.6)
        with torch.no_grad():
            for parameter in [*method.backbone.parameters(), *method.projector.parameters()]:
                parameter.add_(1)
        old = [parameter.clone() for parameter in method.teacher.parameters()]
        method.after_step(done)
        moved = 0.4 * (1 + math.cos(math.pi * done)) / 2
        for was, now in zip(old, method.teacher.parameters(), strict=True):
            torch.testing.assert_close(now, was + moved)


def test_the_teacher_learns_nothing_from_the_loss() -> None:
    method = build()
    method(views()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_the_patch_projection_of_a_transformer_stays_as_it_was_drawn() -> None:
    method = transformer()
    frozen = {name for name, p in method.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    method(views()).loss.backward()
    assert method.backbone.patch_embed.proj.weight.grad is None
    assert all(p.requires_grad for p in transformer(freeze_patch=False).backbone.parameters())
    assert all(p.requires_grad for p in build().backbone.parameters())


def test_a_patch_embedding_without_a_projection_inside_is_frozen_whole() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Flatten())
    backbone.patch_embed = backbone[0]
    method = MoCoV3(backbone, nn.Linear(16, 4))
    assert not any(p.requires_grad for p in method.backbone.parameters())


def test_the_heads_are_those_of_the_official_code() -> None:
    resnet, vit = build(), transformer()
    features = vit.backbone.num_features
    for head, widths, last in (
        (resnet.projector, [64, 32, 16], [False]),
        (resnet.predictor, [16, 32, 16], []),
        (vit.projector, [features, 32, 32, 16], [False]),
        (vit.predictor, [16, 32, 16], [False]),
    ):
        linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
        norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm1d)]
        assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
        assert all(layer.bias is None for layer in linear)
        assert [norm.affine for norm in norms] == [True] * (len(linear) - 1) + last
        assert sum(isinstance(module, nn.ReLU) for module in head.modules()) == len(linear) - 1


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"method.temperature must be positive, got 0"):
        build(temperature=0.0)
    with pytest.raises(ValueError, match=r"method.momentum must lie in \[0, 1\), got -0.1"):
        build(momentum=-0.1)
