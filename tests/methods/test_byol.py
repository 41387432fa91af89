import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLProjectionHead
from torch import Tensor

from sslgh.methods import BYOL
from sslgh.models import build_backbone


def build(**settings: float) -> BYOL:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = BYOL.projector_spec.build(backbone, hidden=32, out=16)
    return BYOL(backbone, projector, **settings).double()


def pair(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def moved(method: BYOL) -> BYOL:
    """The student a step away from its teacher."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                shape = parameter.shape
                parameter.add_(0.05 * torch.randn(shape, dtype=torch.float64, generator=generator))
    return method


def test_byol_loss_is_the_papers_distance_of_unit_predictions_and_targets() -> None:
    method, (x1, x2) = moved(build()), pair()
    output = method([x1, x2])
    again = moved(build())
    p1, p2 = again.predictor(torch.cat(output.embeddings)).chunk(2)
    target1, target2 = again.teacher(torch.cat([x1, x2])).chunk(2)
    expected = []
    for i in range(6):
        one = p1[i] / p1[i].norm() - target2[i] / target2[i].norm()
        two = p2[i] / p2[i].norm() - target1[i] / target1[i].norm()
        expected.append((one**2).sum() + (two**2).sum())
    torch.testing.assert_close(output.per_sample, torch.stack(expected))


def test_byol_loss_is_four_and_four_times_that_of_lightlys_examples() -> None:
    method, (x1, x2) = moved(build()), pair()
    loss = method([x1, x2]).loss
    own = torch.autograd.grad(loss, method.predictor.parameters(), retain_graph=True)
    criterion, again = NegativeCosineSimilarity(), moved(build())
    p1, p2 = again.predictor(again.projector(again.backbone(torch.cat([x1, x2])))).chunk(2)
    target1, target2 = again.teacher(torch.cat([x1, x2])).chunk(2)
    theirs = 4 + 4 * (criterion(p1, target2) + criterion(p2, target1)) / 2
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(
        own, torch.autograd.grad(theirs, tuple(again.predictor.parameters()))
    )


def test_byol_teacher_gets_no_gradient_and_everything_else_does() -> None:
    method = moved(build())
    method(pair()).loss.backward()
    for name, parameter in method.named_parameters():
        teaching = name.startswith("teacher.")
        assert parameter.requires_grad is not teaching
        assert (parameter.grad is None) is teaching


@pytest.mark.parametrize("done", [0.1, 0.5, 0.9])
def test_byol_teacher_follows_with_a_momentum_that_rises_along_the_papers_cosine(done) -> None:
    method = moved(build(momentum=0.9))
    before = [parameter.clone() for parameter in method.teacher.parameters()]
    student = [*method.backbone.parameters(), *method.projector.parameters()]
    tau = 1 - (1 - 0.9) * (math.cos(math.pi * done) + 1) / 2
    method.after_step(done)
    assert len(before) == len(student) > 20
    for now, old, target in zip(method.teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(now, tau * old + (1 - tau) * target)


def test_byol_teacher_starts_as_the_student_and_stands_still_after_the_last_step() -> None:
    method = build(momentum=0.9)
    student = [*method.backbone.parameters(), *method.projector.parameters()]
    assert all(map(torch.equal, method.teacher.parameters(), student))
    before = [parameter.clone() for parameter in method.teacher.parameters()]
    moved(method).after_step(1.0)
    assert all(map(torch.equal, method.teacher.parameters(), before))


def test_byol_teacher_keeps_batch_statistics_of_its_own() -> None:
    method = moved(build())
    method(pair())
    teacher, student = method.teacher[0].bn1, method.backbone.bn1
    assert not torch.equal(teacher.running_var, torch.ones_like(teacher.running_var))
    assert not torch.equal(teacher.running_var, student.running_var)
    before = teacher.running_var.clone()
    method.after_step(0.5)
    assert torch.equal(teacher.running_var, before)


def test_byol_weights_count_like_repeated_samples() -> None:
    """A sum over independent samples once batch statistics are out of the way."""
    x1, x2 = pair(4)
    method = moved(build()).eval()
    repeated = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weighted = method([x1, x2], torch.tensor([2.0, 1, 3, 1])).loss
    torch.testing.assert_close(weighted, method([x1[repeated], x2[repeated]]).loss)


def test_byol_projector_has_the_layers_of_lightlys() -> None:
    assert str(build().projector.layers) == str(BYOLProjectionHead(64, 32, 16).layers)


def test_byol_under_autocast_takes_its_loss_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = build().float()([view.float() for view in pair()])
    assert output.per_sample.dtype == torch.float32
    assert output.loss.isfinite()


def test_byol_refuses_a_teacher_that_is_the_student_and_names_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"method.momentum is 0, .* collapse; set it near 1"):
        build(momentum=0.0)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.1, math.nan])
def test_byol_refuses_a_momentum_that_is_none(momentum) -> None:
    with pytest.raises(ValueError, match=r"method.momentum must lie in \(0, 1\), got"):
        build(momentum=momentum)
