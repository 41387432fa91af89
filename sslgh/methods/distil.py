"""Distillation of frozen backbones into one."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.distributed import weighted_mean
from sslgh.functional import negative_cosine
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, head_widths, load_backbone, mlp_projector


class Distil(Method):
    """The last step of Divide and Contrast: predict the features of a base model and of experts.

    After the paper (arXiv:2105.08054); its distillation loss was not recovered. Here each teacher
    has a predictor on the student's embedding, and the loss of a sample is the mean over its teachers
    and views of the negative cosine between prediction and the teacher's feature of the same view.
    Of the experts, a sample has the one whose cluster it belongs to by the base model's features: the
    others were never trained on its like.

    Projector and predictors have the shape of BYOL's, as that of the paper's MoCLR was not recovered.

    Args:
        backbone: (N, 3, H, W) -> (N, F), the student.
        teachers: Run directories of the frozen backbones; with ``centroids`` the base model first.
        centroids: File of cluster centroids, .npy (E, F of the base model), for E experts in their
            order; None: every sample has all teachers.

    Raises:
        ValueError: If a run directory holds no backbone, or the centroids do not fit the teachers.
    """

    teachers: nn.ModuleList
    centroids: Tensor | None
    projector_spec = ProjectorSpec(mlp_projector, hidden=4096, out=256, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        teachers: tuple[str, ...],
        centroids: str | None = None,
    ) -> None:
        super().__init__()
        if not teachers:
            raise ValueError("method.teachers is empty; name the run directories to learn from")
        self.backbone, self.projector = backbone, projector
        hidden, self.embedding_dim = head_widths(projector)
        frozen = [load_backbone(Path(teacher).expanduser())[0] for teacher in teachers]
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

    def train(self, mode: bool = True) -> "Distil":
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
        seen = base(images)
        asked = seen.new_ones(len(self.teachers), len(images))
        if self.centroids is not None:
            asked[1:] = _cluster(seen, self.centroids).T
        targets = [seen]
        for expert, mine in zip(experts, asked[1:].bool(), strict=True):
            target = seen.new_zeros(len(images), expert.num_features)
            if mine.any():
                target[mine] = expert(images[mine]).to(target.dtype)
            targets.append(target)
        return targets, asked


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
