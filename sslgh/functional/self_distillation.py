"""DINO's loss: the student's other views predict what the teacher sees.

Shapes: N images, V views of which 2 are full, K prototypes.
"""

from torch import Tensor

from sslgh.functional.checks import check_positive, in_float32
from sslgh.functional.swapped_assignment import other_views_cross_entropy


@in_float32
def self_distillation(
    teacher: Tensor,
    student: Tensor,
    center: Tensor,
    *,
    teacher_temperature: float,
    student_temperature: float = 0.1,
) -> Tensor:
    """Cross-entropy of the centered, sharpened teacher and the student (DINO, eq. 3, arXiv:2104.14294).

    All pairs of a full view of the teacher and a view of the student but those of the same view.
    No gradient flows to the teacher.

    Args:
        teacher: Logits of the full views, shape (2, N, K).
        student: Logits of all views, shape (V, N, K), the full ones first.
        center: Subtracted from the teacher's logits, shape (K,).
        teacher_temperature: Divides the centered logits; positive, the paper's 0.04 to 0.07.
        student_temperature: Divides the student's logits; positive.

    Returns:
        Shape (N,): for each image the mean over the 2 (V - 1) pairs.

    Raises:
        ValueError: If shapes do not fit or a temperature is not positive.

    Examples:
        The center removes the teacher's mean output; a uniform student then has loss log K.

        >>> import torch
        >>> always = torch.tensor([5.0, 0.0]).expand(2, 3, 2)
        >>> self_distillation(always, torch.zeros(2, 3, 2), always[0, 0], teacher_temperature=0.04)
        tensor([0.6931, 0.6931, 0.6931])
    """
    check_positive(teacher_temperature=teacher_temperature, student_temperature=student_temperature)
    if (
        teacher.ndim != 3
        or len(teacher) != 2
        or len(student) < 2
        or student.shape[1:] != teacher.shape[1:]
        or center.shape != teacher.shape[2:]
    ):
        raise ValueError(
            f"expected teacher (2, N, K), student (V, N, K) and center (K,), got "
            f"{tuple(teacher.shape)}, {tuple(student.shape)} and {tuple(center.shape)}"
        )
    targets = ((teacher.detach() - center.detach()) / teacher_temperature).softmax(2)
    return other_views_cross_entropy(targets, student / student_temperature)
