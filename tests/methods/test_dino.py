import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslgh.methods import DINO
from sslgh.models import build_backbone, use_global_batch_norm


def build(hidden: int = 32, **settings: float) -> DINO:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = DINO.projector_spec.build(backbone, hidden=hidden, out=16)
    return DINO(backbone, projector, **({"prototypes": 10} | settings)).double()


def crops(local: int = 0, n: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [8, 8] + [4] * local
    return [torch.randn(n, 3, s, s, dtype=torch.float64, generator=generator) for s in sizes]


def moved(method: DINO) -> DINO:
    """The student a step away from its teacher, and a center away from 0."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                shape = parameter.shape
                parameter.add_(0.05 * torch.randn(shape, dtype=torch.float64, generator=generator))
        method.center.copy_(torch.linspace(-0.1, 0.1, len(method.center)))
    return method


def by_hand(method: DINO, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of teacher and student; only the passes of equal sizes share batch statistics."""
    features = [method.backbone(torch.cat(views[:2]))]
    if len(views) > 2:
        features.append(method.backbone(torch.cat(views[2:])))
    z = F.normalize(method.projector(torch.cat(features)))
    student = z @ F.normalize(method.prototypes.weight).T
    backbone, projector, prototypes = method.teacher
    target = F.normalize(projector(backbone(torch.cat(views[:2]))))
    teacher = target @ F.normalize(prototypes.weight).T
    return list(teacher.chunk(2)), list(student.chunk(len(views)))


@pytest.mark.parametrize("local", [0, 3])
def test_dino_has_the_loss_the_gradient_and_the_next_center_of_lightly(local) -> None:
    method, again, views = moved(build()), moved(build()), crops(local)
    method.begin_epoch(40, 100)
    criterion = DINOLoss(10, teacher_temp=0.07, student_temp=0.1, center_momentum=0.9).double()
    criterion.center = again.center[None, None].clone()
    ours = method(views).loss
    method.after_step(1.0)  # at the end of a run the teacher stays
    teacher, student = by_hand(again, views)
    theirs = criterion([logits.detach() for logits in teacher], student)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(method.center, criterion.center[0, 0])
    assert not torch.equal(method.center, again.center)
    own = torch.autograd.grad(ours, (method.prototypes.weight, method.backbone.conv1.weight))
    expected = torch.autograd.grad(theirs, (again.prototypes.weight, again.backbone.conv1.weight))
    torch.testing.assert_close(own, expected)


def test_dino_prototypes_are_those_of_the_papers_weight_norm() -> None:
    """Rows of a fixed length 1, with its gradient."""
    method = moved(build())
    method.begin_epoch(1, 5)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 10, bias=False).double())
    with torch.no_grad():
        layer.parametrizations.weight.original0.fill_(1)
        layer.parametrizations.weight.original1.copy_(method.prototypes.weight)
    teacher, _ = by_hand(moved(build()), crops())
    output = method(crops())
    student = layer(F.normalize(torch.cat(output.embeddings).detach())).chunk(2)
    criterion = DINOLoss(10).double()
    criterion.center = moved(build()).center[None, None]
    temperature = 0.04 + 0.03 / 29
    theirs = criterion([logits.detach() for logits in teacher], list(student), temperature)
    torch.testing.assert_close(output.loss, theirs)
    (expected,) = torch.autograd.grad(theirs, layer.parametrizations.weight.original1)
    (own,) = torch.autograd.grad(output.loss, method.prototypes.weight)
    torch.testing.assert_close(own, expected)


def test_dino_projector_has_the_layers_and_the_first_weights_of_lightlys() -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        theirs = DINOProjectionHead(64, 32, 16, 10)
    ours = build(hidden=512).projector
    assert str(build().projector.layers) == str(theirs.layers)
    for layer in (ours.layers[0], ours.layers[2]):
        assert 0.019 < layer.weight.std() < 0.021
        assert not layer.bias.any()


def test_dino_embeddings_are_the_bottleneck_before_its_normalization() -> None:
    again, views = build(), crops(local=2)
    expected = again.projector(again.backbone(torch.cat(views[:2])))
    torch.testing.assert_close(torch.cat(build()(views).embeddings), expected)
    assert (expected.norm(dim=1) - 1).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("epoch", "temperature"), [(0, 0.04), (10, 0.05), (30, 0.07), (31, 0.07), (500, 0.07)]
)
def test_dino_teachers_temperature_rises_in_a_line_to_that_of_a_warm_one(
    epoch, temperature
) -> None:
    method, again = moved(build(warmup_epochs=31)), moved(build())
    method.begin_epoch(epoch, 600)
    teacher, student = by_hand(again, crops())
    criterion = DINOLoss(10).double()
    criterion.center = again.center[None, None]
    expected = criterion(teacher, student, teacher_temp=temperature)
    torch.testing.assert_close(method(crops()).loss, expected)


def test_dino_without_warmup_is_warm_at_once() -> None:
    one = moved(build(warmup_epochs=0))(crops()).loss
    torch.testing.assert_close(one, moved(build(warmup_temperature=0.07))(crops()).loss)


def test_dino_teacher_gets_no_gradient_and_everything_else_does() -> None:
    method = moved(build())
    method.begin_epoch(1, 5)
    method(crops(local=2)).loss.backward()
    for name, parameter in method.named_parameters():
        teaching = name.startswith("teacher.")
        assert parameter.requires_grad is not teaching
        assert (parameter.grad is None) is teaching


@pytest.mark.parametrize("done", [0.1, 0.5, 1.0])
def test_dino_teacher_follows_with_a_momentum_that_rises_along_the_papers_cosine(done) -> None:
    method = moved(build(momentum=0.9))
    before = [parameter.clone() for parameter in method.teacher.parameters()]
    student = [parameter for parameter in method.parameters() if parameter.requires_grad]
    share = 1 - (1 - 0.9) * (math.cos(math.pi * done) + 1) / 2
    method.after_step(done)
    assert len(before) == len(student) > 20
    for now, old, target in zip(method.teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(now, share * old + (1 - share) * target)


def test_dino_prototypes_have_a_gradient_of_zero_while_frozen_and_one_after() -> None:
    method = moved(build(freeze_prototypes_epochs=2))
    for epoch, frozen in ((0, True), (1, True), (2, False)):
        method.begin_epoch(epoch, 5)
        method.zero_grad()
        method(crops()).loss.backward()
        assert (method.prototypes.weight.grad == 0).all() == frozen
        assert (method.projector.layers[0].weight.grad != 0).any()


def test_dino_weights_count_like_repeated_samples_and_eval_moves_no_center() -> None:
    """A sum over independent samples once batch statistics are out of the way."""
    views, method = crops(local=2, n=4), moved(build()).eval()
    center = method.center.clone()
    repeated = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weighted = method(views, torch.tensor([2.0, 1, 3, 1])).loss
    torch.testing.assert_close(weighted, method([view[repeated] for view in views]).loss)
    assert torch.equal(method.center, center)


def test_dino_under_autocast_takes_logits_and_loss_in_float32() -> None:
    method = moved(build()).float()
    views = [view.float() for view in crops(local=2)]
    with torch.autocast("cpu", torch.bfloat16):
        output = method(views)
    assert output.per_sample.dtype == method.center.dtype == torch.float32
    assert output.loss.isfinite()
    method.after_step(1.0)
    mean = (method.center - 0.9 * torch.linspace(-0.1, 0.1, 10)) * 10
    assert (mean - mean.bfloat16().float()).abs().max() > 1e-5


def test_dino_refuses_what_collapses_it_and_names_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"method.momentum is 0, .* set it near 1"):
        build(momentum=0.0)
    with pytest.raises(ValueError, match=r"method.momentum must lie in \(0, 1\), got 2"):
        build(momentum=2.0)
    with pytest.raises(ValueError, match=r"must lie below method.student_temperature 0.05"):
        build(student_temperature=0.05)
    with pytest.raises(ValueError, match=r"method.prototypes must be at least 2 .* got 1 and"):
        build(prototypes=1)


def test_dino_moves_its_center_once_a_step_by_all_parts_of_the_batch() -> None:
    whole, parted, views = moved(build()), moved(build()), crops(0)
    for method in (whole, parted):
        method.eval().training = True  # statistics of the batch norms would tell the parts apart
    whole(views)
    for half in zip(*(view.chunk(2) for view in views), strict=True):
        parted(list(half))
    for method in (whole, parted):
        method.after_step(1.0)
    torch.testing.assert_close(parted.center, whole.center)


@pytest.mark.parametrize(
    "key", ["prototypes", "student_temperature", "teacher_temperature", "warmup_temperature"]
)
def test_dino_names_the_key_that_is_out_of_range(key) -> None:
    with pytest.raises(ValueError, match=f"method.{key} must be positive, got 0"):
        build(**{key: 0})


def part(cuts: list[int]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Three steps with crops on this process's images."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    distributed = dist.is_initialized()
    rank = dist.get_rank() if distributed else 0
    own = slice(cuts[rank], cuts[rank + 1])
    method = moved(build(momentum=0.9, freeze_prototypes_epochs=0))
    model: nn.Module = (
        DistributedDataParallel(use_global_batch_norm(method)) if distributed else method
    )
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)[own]
    for number in range(3):
        views = [view[own] for view in crops(local=2, n=12, seed=number)]
        method.zero_grad()
        output = model(views, weights)
        output.loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
        method.after_step((number + 1) / 4)
    loss = output.loss.detach()
    if distributed:
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return loss, gradients, method.state_dict()


def test_dino_with_crops_does_not_depend_on_the_number_of_processes(
    two_processes, three_processes
) -> None:
    loss, gradients, state = part([0, 12])
    assert len(gradients) > 20
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for found, parts, states in run(part, cuts):
            assert abs(found - loss) <= 1e-5 * abs(loss)
            for own, whole in zip(parts, gradients, strict=True):
                assert (own - whole).norm() <= 1e-5 * whole.norm() + 1e-12
            for key, value in state.items():
                torch.testing.assert_close(states[key], value, rtol=1e-5, atol=1e-8, msg=key)
