"""What accompanies a method through pretraining: state beside the module that DDP sees.

Shapes: n samples of a batch, N of the training set, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.data import ImageSet
from sslgh.engine.build import build_harmonizer
from sslgh.engine.monitor.collapse import CollapseAlarm
from sslgh.engine.monitor.labels import TrackedEmbeddings, labeled_health
from sslgh.engine.monitor.online_probe import OnlineProbe
from sslgh.functional.groups import shot_groups
from sslgh.harmonize import GeometricHarmonizer, MomentumLoss
from sslgh.methods import Method, MethodOutput
from sslgh.recipe import Recipe


class LabelMonitor(nn.Module):
    """The labels of a training set, and what they judge.

    Args:
        labels: Shape (N,).
        class_counts: Shape (C,).
        features: F, width of the backbone.
        width: D, of the embedding.
    """

    labels: Tensor

    def __init__(
        self,
        labels: NDArray[np.int64],
        class_counts: NDArray[np.int64],
        *,
        features: int,
        width: int,
    ) -> None:
        super().__init__()
        counts = torch.from_numpy(class_counts)
        self.register_buffer("labels", torch.from_numpy(labels), persistent=False)
        self.groups = shot_groups(counts)
        self.tracked = TrackedEmbeddings(labels, len(counts), width)
        self.probe = OnlineProbe(features, counts)

    def observe(
        self, features: Tensor, z: Tensor, index: Tensor, *, logged: bool
    ) -> dict[str, Tensor]:
        """Remember embeddings and train the probe; its accuracies where they are logged."""
        self.tracked.observe(z, index)
        accuracy = self.probe.observe(features, self.labels[index])
        if not logged:
            return {}
        groups = self.probe.group_accuracy(self.groups)
        return {"online": accuracy} | {f"online_{name}": value for name, value in groups.items()}

    def report(self, harmonizer: GeometricHarmonizer | None) -> dict[str, float]:
        """`labeled_health` of what is remembered; process 0 only."""
        embeddings, index = self.tracked.known()
        surrogate = None if harmonizer is None else harmonizer.labels[index]
        return labeled_health(embeddings, self.labels[index], self.groups, surrogate=surrogate)


class AuxiliaryState(nn.Module):
    """What a recipe asks for beside its method; the state of what is there belongs to a checkpoint.

    Args:
        harmonizer: Geometric Harmonization, or None.
        boost: Losses of the samples, for boosted augmentation, or None.
        labeled: What the labels are used for, none of it training; None where they are not known.
        width: D, of the embedding.
    """

    def __init__(
        self,
        harmonizer: GeometricHarmonizer | None,
        boost: MomentumLoss | None,
        labeled: LabelMonitor | None,
        *,
        width: int,
    ) -> None:
        super().__init__()
        self.harmonizer, self.boost, self.labeled = harmonizer, boost, labeled
        self.alarm = CollapseAlarm(width)

    @property
    def epoch_indices(self) -> Callable[[int], NDArray[np.int64]] | None:
        """The positions that an epoch shows, where the stream is resampled."""
        if self.harmonizer is None or not self.harmonizer.resample:
            return None
        return self.harmonizer.epoch_indices

    def observe(self, output: MethodOutput, index: Tensor, *, logged: bool) -> dict[str, Tensor]:
        """Remember what a step showed of the samples at ``index`` (n,). Collective: call it on every rank.

        Returns:
            Numbers for the log.
        """
        z = output.embeddings[0].detach()
        if self.harmonizer is not None:
            self.harmonizer.observe(z, index)
        if self.boost is not None:
            assert output.per_sample is not None
            self.boost.observe(output.per_sample.detach(), index)
        if self.labeled is None:
            return {}
        return self.labeled.observe(output.features, z, index, logged=logged)

    def report(self) -> dict[str, float]:
        """What the labels say of the embedding; process 0 only."""
        if self.labeled is None:
            return {}
        return self.labeled.report(self.harmonizer)


def build_auxiliary(recipe: Recipe, images: ImageSet, method: Method) -> AuxiliaryState:
    """The companions that a recipe and the data ask for.

    Raises:
        RecipeError: As `build_harmonizer`.
    """
    harmonizer = build_harmonizer(recipe, len(images), method.embedding_dim)
    boost = None
    if recipe.boost is not None:
        boost = MomentumLoss(len(images), momentum=recipe.boost.momentum)
    labeled = None
    if images.labels is not None:
        features = method.backbone.num_features
        assert isinstance(features, int)
        labeled = LabelMonitor(
            images.labels, images.class_counts, features=features, width=method.embedding_dim
        )
    return AuxiliaryState(harmonizer, boost, labeled, width=method.embedding_dim)
