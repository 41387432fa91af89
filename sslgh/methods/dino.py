"""DINO."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import self_distillation
from sslgh.functional.checks import in_float32
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, dino_projector, head_widths

# Momentum of the center, the EMA of the teacher's logits; the paper's.
CENTER_MOMENTUM = 0.9


class DINO(Method):
    """All crops predict what a slower copy of the network makes of the full views (arXiv:2104.14294).

    Embeddings are the bottleneck's before its normalization. The prototypes are a linear layer with
    unit rows (a weight norm of fixed length 1, as in the paper's code). The student sees all crops, the
    teacher the two full views.

    Args:
        backbone: (N, 3, H, W) -> (N, F); for local crops one that takes several sizes.
        projector: (N, F) -> (N, D), up to the bottleneck; the recipe's ``method.batch_norm`` puts norms
            into it, the official code's ``use_bn_in_head``: a help to small convolutional networks.
        prototypes: Number of prototypes K.
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's logits after the warm-up.
        warmup_temperature: Teacher's temperature in epoch 0; it rises linearly.
        warmup_epochs: Epochs of that rise; 0: none.
        momentum: Teacher's momentum at the start; it rises to 1 along a cosine over the run.
        freeze_prototypes_epochs: Epochs in which the student's prototypes stay as drawn.

    Raises:
        ValueError: If a value is out of range.
    """

    multi_crop = True
    projector_spec = ProjectorSpec(
        dino_projector, hidden=2048, out=256, layers=3, options=("batch_norm",)
    )

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        prototypes: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_temperature: float = 0.04,
        warmup_epochs: int = 30,
        momentum: float = 0.996,
        freeze_prototypes_epochs: int = 1,
    ) -> None:
        super().__init__()
        _check(
            prototypes=prototypes,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            warmup_temperature=warmup_temperature,
        )
        if prototypes < 2 or warmup_epochs < 0:
            raise ValueError(
                f"method.prototypes must be at least 2 and method.warmup_epochs at least 0, got {prototypes} and "
                f"{warmup_epochs}"
            )
        if max(teacher_temperature, warmup_temperature) >= student_temperature:
            raise ValueError(
                f"method.teacher_temperature {teacher_temperature} and method.warmup_temperature "
                f"{warmup_temperature} must lie below method.student_temperature {student_temperature}: a teacher "
                "that is not sharper is known to collapse"
            )
        if momentum == 0:
            raise ValueError(
                "method.momentum is 0, a teacher that is the student itself, with which DINO does not "
                "learn; set it near 1, such as 0.996"
            )
        if not 0 < momentum < 1:
            raise ValueError(
                f"method.momentum must lie in (0, 1), got {momentum}; at 1 the teacher stays as it was drawn"
            )
        self.backbone, self.projector = backbone, projector
        out = self.embedding_dim = head_widths(projector)[1]
        self.prototypes = nn.Linear(out, prototypes, bias=False)
        self.teacher = deepcopy(self._student())
        deactivate_requires_grad(self.teacher)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(prototypes))
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.warmup_temperature = warmup_temperature
        self.warmup_epochs = warmup_epochs
        self.momentum = momentum
        self.freeze_prototypes_epochs = freeze_prototypes_epochs
        self._sums: list[Tensor] = []  # of this step; empty whenever a checkpoint is saved
        self.epoch = 0  # not saved: begin_epoch is called again on resume

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the epoch, which selects the teacher's temperature and freezing."""
        self.epoch = epoch

    def after_step(self, done: float) -> None:
        """Move the teacher's parameters; the statistics of its batch norms are its own."""
        # lightly's schedule ends at max_steps - 1: here a step is the whole run.
        momentum = cosine_schedule(done, 2, self.momentum, 1.0)
        update_momentum(self._student(), self.teacher, momentum)
        if self._sums:
            self._move_center()

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """The two full views in one pass, then all local crops in one."""
        n, full = len(views[0]), torch.cat(views[:2])
        h = self.backbone(full)
        crops = [self.backbone(torch.cat(views[2:]))] if len(views) > 2 else []
        z = self.projector(torch.cat([h, *crops]))
        prototypes = self.prototypes.weight
        if self.epoch < self.freeze_prototypes_epochs:
            prototypes = prototypes.detach() + 0 * prototypes  # DDP waits for a gradient, if of 0
        with torch.no_grad():
            backbone, projector, directions = self.teacher
            seen = _logits(projector(backbone(full)), directions.get_parameter("weight")).view(
                2, n, -1
            )
        per_sample = self_distillation(
            seen,
            _logits(z, prototypes).view(len(views), n, -1),
            self.center,
            teacher_temperature=self._temperature(),
            student_temperature=self.student_temperature,
        )
        if self.training:
            self._gather_sums(seen)
        z1, z2 = z[: 2 * n].chunk(2)
        features = h[:n].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)

    def _student(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector, self.prototypes)

    def _temperature(self) -> float:
        if self.epoch >= self.warmup_epochs:
            return self.teacher_temperature
        share = self.epoch / max(self.warmup_epochs - 1, 1)
        return self.warmup_temperature + share * (
            self.teacher_temperature - self.warmup_temperature
        )

    @torch.no_grad()
    def _gather_sums(self, seen: Tensor) -> None:
        """Sum and number of the rows of all processes, however many each of them has.

        lightly's center takes the mean of the processes' means instead.
        """
        rows = seen.flatten(0, 1)
        sums, _ = gather(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])[None])
        self._sums.append(sums.sum(0))

    @torch.no_grad()
    def _move_center(self) -> None:
        """Average in the mean over all micro-batches of the step, which share one center."""
        total = torch.stack(self._sums).sum(0)
        mean = (total[:-1] / total[-1]).to(self.center.dtype)
        self.center.lerp_(mean, 1 - CENTER_MOMENTUM)
        self._sums.clear()

    def discard_step(self) -> None:
        """Forget what waits for the center."""
        self._sums.clear()


@in_float32
def _logits(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines (N, K), not rounded by autocast: they are divided by 0.04."""
    return F.linear(F.normalize(z), F.normalize(prototypes))


def _check(**positive: float) -> None:
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"method.{name} must be positive, got {value}")
