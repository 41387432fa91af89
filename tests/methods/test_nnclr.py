import pytest
import torch
import torch.nn.functional as F
from lightly.models.modules import NNMemoryBankModule
from lightly.models.modules.heads import NNCLRProjectionHead
from torch import Tensor

from sslgh.methods.nnclr import NNCLR
from sslgh.models import build_backbone


def build(queue: int = 20, layers: int = 3, **settings) -> NNCLR:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = NNCLR.projector_spec.build(backbone, hidden=32, out=16, layers=layers)
    return NNCLR(backbone, projector, predictor_hidden=24, queue=queue, **settings).double()


def views(n: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def pseudocode(method: NNCLR, x1: Tensor, x2: Tensor) -> Tensor:
    """The paper's pseudocode, with lightly's memory bank."""
    bank = NNMemoryBankModule(size=(20, 16)).double()
    bank.bank.copy_(method.queue.rows)
    z = method.projector(method.backbone(torch.cat([x1, x2])))
    (z1, z2), (p1, p2) = z.chunk(2), method.predictor(z).chunk(2)

    def loss(neighbors: Tensor, p: Tensor) -> Tensor:
        logits = F.normalize(neighbors) @ F.normalize(p).T / 0.1
        return F.cross_entropy(logits, torch.arange(len(p)))

    return loss(bank(z1.detach()), p2) / 2 + loss(bank(z2.detach()), p1) / 2


def test_it_has_the_loss_and_gradient_of_the_papers_pseudocode() -> None:
    method, other = build(), build()
    losses = method(views()).loss, pseudocode(other, *views())
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, list(each.parameters()))
        for loss, each in zip(losses, (method, other), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_embeddings_of_view_1_enter_the_queue_after_the_step() -> None:
    method = build(queue=8)
    before = method.queue.rows.clone()
    z1, _ = method(views()).embeddings
    assert torch.equal(method.queue.rows, before)
    method.after_step(0.5)
    torch.testing.assert_close(method.queue.rows[:6], F.normalize(z1.detach()))
    assert torch.equal(method.queue.rows[6:], before[6:])
    method(views(seed=2))
    method.after_step(1.0)
    assert int(method.queue.oldest) == 4
    torch.testing.assert_close(method.queue.rows[4:6], F.normalize(z1.detach())[4:])


def test_a_look_in_eval_mode_leaves_the_queue_alone() -> None:
    method = build().eval()
    before = method.queue.rows.clone()
    method(views())
    method.after_step(0.5)
    assert torch.equal(method.queue.rows, before)


def test_the_projector_is_lightlys_with_three_layers() -> None:
    assert str(build().projector.layers) == str(NNCLRProjectionHead(64, 32, 16).layers)
    assert len(build(layers=2).projector.layers) == 5


def test_a_batch_larger_than_the_queue_is_refused_at_the_first_forward() -> None:
    with pytest.raises(ValueError, match=r"method.queue 5 is smaller than the batch of 6 images"):
        build(queue=5)(views())


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"method.temperature must be positive, got 0"):
        build(temperature=0.0)
    with pytest.raises(ValueError, match=r"method.queue must be at least 1, got -3"):
        build(queue=-3)
