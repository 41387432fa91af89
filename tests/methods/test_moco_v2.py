from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor, nn

from sslgh.methods.moco_v2 import MoCoV2
from sslgh.models import build_backbone


def build(queue: int = 20, **settings) -> MoCoV2:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = MoCoV2.projector_spec.build(backbone, hidden=32, out=16)
    return MoCoV2(backbone, projector, queue=queue, **settings).double()


def views(n: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def test_it_has_the_loss_and_gradient_of_lightlys_memory_bank() -> None:
    """View 1 asks, the teacher answers with view 2, the queue holds what else it could be."""
    method, (x1, x2) = build(), views()
    output, other = method([x1, x2]), build()
    lightly = NTXentLoss(temperature=0.2, memory_bank_size=(20, 16)).double()
    lightly.memory_bank.bank.copy_(other.queue.rows)
    z1, _ = other.projector(other.backbone(torch.cat([x1, x2]))).chunk(2)
    expected = lightly(z1, other.teacher(x2).detach())
    torch.testing.assert_close(output.loss, expected)
    gradients = [
        torch.autograd.grad(loss, [*each.backbone.parameters(), *each.projector.parameters()])
        for loss, each in ((output.loss, method), (expected, other))
    ]
    torch.testing.assert_close(*gradients)


def test_the_loss_goes_one_way() -> None:
    output = build()(views())
    ways = torch.autograd.grad(output.loss, output.embeddings, allow_unused=True)
    assert ways[0].abs().sum() > 0
    assert ways[1] is None


def test_keys_enter_the_queue_after_the_step_and_in_the_order_of_the_batch() -> None:
    method, pair = build(queue=8), views()
    method.begin_epoch(0, 1)
    before = method.queue.rows.clone()
    keys = deepcopy(method.teacher)(pair[1])
    method(pair)
    assert torch.equal(method.queue.rows, before)
    method.after_step(0.5)
    torch.testing.assert_close(method.queue.rows[:6], F.normalize(keys))
    assert torch.equal(method.queue.rows[6:], before[6:])
    method(views(seed=2))
    method.after_step(1.0)
    assert int(method.queue.oldest) == 4
    torch.testing.assert_close(method.queue.rows[4:6], F.normalize(keys)[4:])


def test_the_parts_of_an_accumulated_step_see_the_same_queue_and_enter_one_after_the_other() -> (
    None
):
    method, (x1, x2) = build().eval(), views()
    keys = method.teacher(x2)
    whole = method([x1, x2]).per_sample
    method.training = True  # the norms stay in eval mode: batch statistics are out of the way
    parts = [method([x1[rows], x2[rows]]).per_sample for rows in (slice(3), slice(3, None))]
    torch.testing.assert_close(torch.cat(parts), whole)
    method.after_step(0.5)
    torch.testing.assert_close(method.queue.rows[:6], F.normalize(keys))


def test_a_look_in_eval_mode_leaves_the_queue_alone() -> None:
    method = build().eval()
    before = method.queue.rows.clone()
    method(views())
    method.after_step(0.5)
    assert torch.equal(method.queue.rows, before)


def test_the_teacher_is_the_students_moving_average_and_learns_from_nothing_else() -> None:
    method = build(momentum=0.9)
    method(views()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    student = [*method.backbone.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for parameter in student:
            parameter.add_(1)
    old = [parameter.clone() for parameter in method.teacher.parameters()]
    method.after_step(0.5)
    for was, now, leads in zip(old, method.teacher.parameters(), student, strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * leads)


def test_the_head_is_that_of_the_paper() -> None:
    head = build().projector
    assert str(head) == str(MoCoProjectionHead(64, 32, 16))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in head.modules())
    backbone = build_backbone("resnet18", width=0.125)
    assert MoCoV2.projector_spec.build(backbone).layers[0].out_features == 64


def test_a_batch_larger_than_the_queue_is_refused_at_the_first_forward() -> None:
    sentence = (
        "method.queue 5 is smaller than the batch of 6 images; raise method.queue to at least"
    )
    with pytest.raises(ValueError, match=sentence):
        build(queue=5)(views())
    build(queue=6)(views())


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"method.temperature must be positive, got 0"):
        build(temperature=0.0)
    with pytest.raises(ValueError, match=r"method.momentum must lie in \(0, 1\), got 1.1"):
        build(momentum=1.1)
    with pytest.raises(ValueError, match=r"method.queue must be at least 1, got 0"):
        build(queue=0)
