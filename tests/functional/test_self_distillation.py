import math

import pytest
import torch
from lightly.loss import DINOLoss
from torch import Tensor

from sslgh.functional import self_distillation


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def algorithm_one(teacher: Tensor, student: Tensor, center: Tensor, t: float, s: float) -> Tensor:
    """DINO's Algorithm 1 and eq. 3 in loops."""
    losses = []
    for image in range(teacher.shape[1]):
        pairs = []
        for i in range(2):
            for v in range(len(student)):
                if v == i:
                    continue
                target = [
                    ((a - c) / t).exp() for a, c in zip(teacher[i, image], center, strict=True)
                ]
                guess = [(a / s).exp() for a in student[v, image]]
                pairs.append(
                    -sum(
                        a / sum(target) * (b / sum(guess)).log()
                        for a, b in zip(target, guess, strict=True)
                    )
                )
        losses.append(sum(pairs) / len(pairs))
    return torch.stack(losses)


@pytest.mark.parametrize(("views", "n", "k"), [(2, 3, 4), (4, 2, 3)])
def test_self_distillation_equals_the_algorithm_of_the_paper(views: int, n: int, k: int) -> None:
    teacher, student, center = draw(2, n, k), draw(views, n, k, seed=1), draw(k, seed=2)
    found = self_distillation(
        teacher, student, center, teacher_temperature=0.3, student_temperature=0.5
    )
    torch.testing.assert_close(found, algorithm_one(teacher, student, center, 0.3, 0.5))


@pytest.mark.parametrize("views", [2, 5])
def test_self_distillation_has_the_value_and_gradient_of_lightly(views: int) -> None:
    teacher, student = draw(2, 16, 6), draw(views, 16, 6, seed=1).requires_grad_()
    center = draw(6, seed=2)
    ours = self_distillation(teacher, student, center, teacher_temperature=0.04).mean()
    criterion = DINOLoss(6).double()
    criterion.center = center[None, None]
    theirs = criterion(list(teacher), list(student), teacher_temp=0.04)
    torch.testing.assert_close(ours, theirs)
    local = torch.autograd.grad(ours, student)
    torch.testing.assert_close(local, torch.autograd.grad(theirs, student))


def test_self_distillation_of_a_sure_teacher_is_the_students_surprise() -> None:
    """The student gives the teacher's choice 1/5 of the odds: exp(0) against 4 others' exp(0)."""
    teacher = torch.zeros(2, 3, 5)
    teacher[:, :, 1] = 10
    found = self_distillation(
        teacher, torch.zeros(4, 3, 5), torch.zeros(5), teacher_temperature=0.04
    )
    torch.testing.assert_close(found, torch.full((3,), math.log(5)))


def test_self_distillation_never_compares_a_view_with_itself() -> None:
    """Each student view knows only the teacher's own view of it, which is never asked for."""
    teacher = torch.eye(2)[:, None]  # view 0 sees prototype 0, view 1 prototype 1
    knowing = teacher.clone()
    found = self_distillation(
        teacher, knowing, torch.zeros(2), teacher_temperature=0.01, student_temperature=0.05
    )
    torch.testing.assert_close(found, torch.full((1,), 20.0))


def test_self_distillation_ignores_shifts_of_a_teachers_or_a_students_logits() -> None:
    teacher, student, center = draw(2, 4, 6), draw(3, 4, 6, seed=1), draw(6, seed=2)
    expected = self_distillation(teacher, student, center, teacher_temperature=0.07)
    shifted = self_distillation(
        teacher + draw(2, 4, 1, seed=3),
        student + draw(3, 4, 1, seed=4),
        center + 3,
        teacher_temperature=0.07,
    )
    torch.testing.assert_close(shifted, expected)


def test_self_distillation_gives_no_gradient_to_teacher_and_center() -> None:
    teacher, student, center = (
        draw(2, 4, 6).requires_grad_(),
        draw(3, 4, 6, seed=1).requires_grad_(),
        draw(6, seed=2).requires_grad_(),
    )
    self_distillation(teacher, student, center, teacher_temperature=0.07).sum().backward()
    assert teacher.grad is None
    assert center.grad is None
    assert (student.grad != 0).all()


def test_self_distillation_does_not_overflow_where_exp_of_the_logits_would() -> None:
    teacher, student = 1e3 * draw(2, 4, 6).float(), (1e3 * draw(3, 4, 6).float()).requires_grad_()
    loss = self_distillation(teacher, student, torch.zeros(6), teacher_temperature=0.04)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_self_distillation_loses_nothing_to_half_precision_inputs(dtype: torch.dtype) -> None:
    teacher, student = draw(2, 4, 6).to(dtype), draw(3, 4, 6, seed=1).to(dtype)
    center = draw(6, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = self_distillation(teacher, student, center, teacher_temperature=0.04)
    wide = self_distillation(teacher.float(), student.float(), center, teacher_temperature=0.04)
    assert torch.equal(half, wide)


def test_self_distillation_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 4, 6\), \(3, 5, 6\) and \(6,\)"):
        self_distillation(draw(2, 4, 6), draw(3, 5, 6), draw(6), teacher_temperature=0.04)
    with pytest.raises(ValueError, match="teacher_temperature must be positive"):
        self_distillation(draw(2, 4, 6), draw(3, 4, 6), draw(6), teacher_temperature=0.0)
