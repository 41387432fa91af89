"""Distillation of frozen backbones into one."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.distributed import weighted_mean
from sslgh.functional import negative_cosine
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, mlp_projector
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.models.serialization import run_of
from sslgh.models.weight_files import REMEDY, SUFFIXES
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.schema import Model

# What messages on weights name, as a recipe names it for a teacher.
TEACHER_KEYS = {
    REMEDY: "set method.teacher_backbone and a transformer's method.teacher_size to those that it was saved from, or, "
    "where its stem, width or patch are not the usual ones, method.teacher to its run directory",
    "data.size": "method.teacher_size",
    "model.backbone": "method.teacher_backbone",
    "model.init": "method.teacher",
}


class Distill(Method):
    """Predict the features of a teacher, or of several: any weights, or runs, as in Divide and Contrast.

    Each teacher has a predictor on the student's embedding, and the loss of a sample is the mean over its teachers
    and views of the negative cosine between prediction and the teacher's feature of the same view, which the teacher
    sees as its weights expect: with their moments, and of their size. The default of lightly-train's distillation
    is a mean squared error instead; the cosine does not depend on the scale of a teacher's features.

    The last step of Divide and Contrast (arXiv:2105.08054) is a case of it; its distillation loss was not recovered.
    Of its experts, a sample has the one whose cluster it belongs to by the base model's features: the others were
    never trained on its like.

    Projector and predictors have the shape of BYOL's, as that of the paper's MoCLR was not recovered.

    Args:
        backbone: (N, 3, S, S) -> (N, F), the student.
        teacher: What ``model.init`` may be: a run directory, ``timm:NAME``, ``package:NAME``, a file of weights.
        teachers: Several of them; with ``centroids`` the base model first.
        teacher_backbone: Architecture of teachers that are files of weights, a name as of ``model.backbone``.
        teacher_size: Side of the teachers' input (pixels); None: that of their weights.
        centroids: File of cluster centroids, .npy (E, F of the base model), for E experts in their
            order; None: every sample has all teachers.

    Raises:
        ValueError: If there are no such weights, they take no images of that side, or the centroids do not fit.
    """

    teachers: nn.ModuleList
    centroids: Tensor | None
    projector_spec = ProjectorSpec(mlp_projector, hidden=4096, out=256, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        teacher: str | None = None,
        teachers: tuple[str, ...] = (),
        teacher_backbone: str | None = None,
        teacher_size: int | None = None,
        centroids: str | None = None,
    ) -> None:
        super().__init__()
        if (teacher is None) == (not teachers):
            raise ValueError("set one of method.teacher and method.teachers: weights to learn from")
        self.backbone, self.projector = backbone, projector
        hidden, self.embedding_dim = head_widths(projector)
        specs = teachers if teacher is None else (teacher,)
        frozen = [_load_teacher(each, teacher_backbone, teacher_size) for each in specs]
        widths = [int(teacher.num_features) for teacher in frozen]  # type: ignore[arg-type]
        self.teachers = nn.ModuleList(frozen).requires_grad_(requires_grad=False).eval()
        self.predictors = nn.ModuleList(
            mlp_projector(self.embedding_dim, hidden=hidden, out=width, layers=2)
            for width in widths
        )
        loaded = (
            None if centroids is None else _load_centroids(centroids, len(widths) - 1, widths[0])
        )
        self.register_buffer("centroids", loaded)

    def train(self, mode: bool = True) -> "Distill":
        """As of any module, but teachers stay as they are: their statistics do not move."""
        super().train(mode)
        self.teachers.eval()
        return self

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed both views in one pass and predict from it what the teachers see in them."""
        images = torch.cat(views)
        h = self.backbone(images)
        z = self.projector(h)
        # Every predictor sees the whole batch, since its norm would know little of a small cluster.
        predictions = [predictor(z) for predictor in self.predictors]
        targets, asked = self._look(images)
        losses = torch.stack(
            [negative_cosine(p, t) for p, t in zip(predictions, targets, strict=True)]
        )
        per_view = (asked * losses).sum(0) / asked.sum(0)
        per_sample = per_view.view(2, -1).mean(0)
        z1, z2 = z.chunk(2)
        features = h[: len(z1)].detach()
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), features)

    @torch.no_grad()
    def _look(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features (2N, F) of each of the T teachers, and the mask (T, 2N) of 0 and 1 of the teachers used per image.

        The features of an image that a teacher is not asked for are zeros.
        """
        base, *experts = self.teachers
        seen = self._features(base, images)
        asked = seen.new_ones(len(self.teachers), len(images))
        if self.centroids is not None:
            asked[1:] = _cluster(seen, self.centroids).T
        targets = [seen]
        for expert, mine in zip(experts, asked[1:].bool(), strict=True):
            target = seen.new_zeros(len(images), cast("int", expert.num_features))
            if mine.any():
                target[mine] = self._features(expert, images[mine]).to(target.dtype)
            targets.append(target)
        return targets, asked

    def _features(self, teacher: nn.Module, images: Tensor) -> Tensor:
        student = Preprocessing.of(self.backbone)
        found = teacher(as_teacher_sees(images, student, Preprocessing.of(teacher)))
        return cast("Tensor", found)


def as_teacher_sees(images: Tensor, student: Preprocessing, teacher: Preprocessing) -> Tensor:
    """Views (N, 3, S, S) that are normalized for a student, as a teacher's weights expect them.

    Left as they are, to the bit, where both expect the same.
    """
    if (student.mean, student.std) != (teacher.mean, teacher.std):
        ours, theirs = (
            [images.new_tensor(each).view(3, 1, 1) for each in (one.mean, one.std)]
            for one in (student, teacher)
        )
        images = (images * ours[1] + ours[0] - theirs[0]) / theirs[1]
    if images.shape[-1] != teacher.size:
        mode = "bilinear" if teacher.interpolation == "bilinear" else "bicubic"
        images = F.interpolate(images, size=(teacher.size,) * 2, mode=mode, antialias=True)
    return images


def _load_teacher(name: str, architecture: str | None, size: int | None) -> nn.Module:
    """A backbone with weights and preprocessing.

    Raises:
        ValueError: If there is none, or it takes no images of that side.
    """
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES and run_of(name) is None and architecture is None:
        raise ValueError(
            f"method.teacher: {name} is a file of weights; set method.teacher_backbone to their architecture"
        )
    shape = {} if architecture is None else {"backbone": architecture}
    model = Model(init=name, init_least=1.0, **shape)
    try:
        side = size or initial_card(model)["image_size"] or Preprocessing().size
        return initial_backbone(model, side)
    except ValueError as error:
        reason = str(error).removeprefix("model.init: ")
        for theirs, ours in TEACHER_KEYS.items():
            reason = reason.replace(theirs, ours)
        raise ValueError(f"method.teacher: {reason}") from None


def _cluster(features: Tensor, centroids: Tensor) -> Tensor:
    """One-hot cluster (2N, E) of each image, the same for its two views: the nearest to their mean."""
    mean = F.normalize(features.float()).view(2, -1, features.shape[1]).mean(0)
    nearest = (mean @ F.normalize(centroids.float()).T).argmax(1)
    return F.one_hot(nearest, len(centroids)).repeat(2, 1).to(features.dtype)


def _load_centroids(file: str, experts: int, width: int) -> Tensor:
    try:
        centroids = np.load(Path(file).expanduser())
    except (OSError, ValueError) as error:
        raise ValueError(f"method.centroids {file} cannot be read as .npy ({error})") from None
    if centroids.shape != (experts, width):
        raise ValueError(
            f"method.centroids {file} has shape {centroids.shape}, but {experts} experts and a base "
            f"model of {width} features need ({experts}, {width})"
        )
    return torch.from_numpy(centroids).float()
