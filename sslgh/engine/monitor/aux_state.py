"""Auxiliary state outside the DDP module: harmonizer, EMA of the losses, label monitor, collapse alarm.

Shapes: n samples of a batch, N of the training set, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.data import ImageSet
from sslgh.engine.build import build_harmonizer
from sslgh.engine.monitor.embeddings import CollapseAlarm
from sslgh.engine.monitor.labels import TrackedEmbeddings, labeled_health
from sslgh.engine.monitor.online_probe import OnlineProbe
from sslgh.functional.groups import shot_groups
from sslgh.harmonize import GeometricHarmonizer, MomentumLoss
from sslgh.methods import Method, MethodOutput
from sslgh.recipe import Recipe


class LabelMonitor(nn.Module):
    """Monitors the embeddings with the labels of a training set, which training never sees.

    Args:
        labels: Class per training image, shape (N,).
        class_counts: Training images per class, shape (C,).
        features: Width F of the backbone's features.
        width: Embedding width D.
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

    def update(
        self, features: Tensor, z: Tensor, index: Tensor, *, logged: bool
    ) -> dict[str, Tensor]:
        """Store embeddings and train the probe; returns its accuracies if the step is logged."""
        self.tracked.update(z, index)
        accuracy = self.probe.update(features, self.labels[index])
        if not logged:
            return {}
        groups = self.probe.group_accuracy(self.groups)
        return {"online": accuracy} | {f"online_{name}": value for name, value in groups.items()}

    def report(self, harmonizer: GeometricHarmonizer | None) -> dict[str, float]:
        """`labeled_health` of the stored embeddings; rank 0 only."""
        embeddings, index = self.tracked.known()
        surrogate = None if harmonizer is None else harmonizer.labels[index]
        return labeled_health(embeddings, self.labels[index], self.groups, surrogate=surrogate)


class AuxiliaryState(nn.Module):
    """Everything that is updated with the method but not trained by DDP; saved in every checkpoint.

    Args:
        harmonizer: Geometric Harmonization, or None.
        boost: EMA of the per-sample losses, for boosted augmentation, or None.
        labeled: Monitor with labels; None for an unlabeled training set.
        width: Embedding width D.
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
        """Positions of an epoch's images, if GH resamples them."""
        if self.harmonizer is None or not self.harmonizer.resample:
            return None
        return self.harmonizer.epoch_indices

    def update(self, output: MethodOutput, index: Tensor, *, logged: bool) -> dict[str, Tensor]:
        """Store the outputs for the samples at ``index`` (n,). Collective: call it on every rank.

        Returns:
            Metrics for the log.
        """
        z = output.embeddings[0].detach()
        if self.harmonizer is not None:
            self.harmonizer.observe(z, index)
        if self.boost is not None:
            assert output.per_sample is not None
            self.boost.observe(output.per_sample.detach(), index)
        if self.labeled is None:
            return {}
        return self.labeled.update(output.features, z, index, logged=logged)

    def report(self) -> dict[str, float]:
        """Metrics of the embeddings against the labels; rank 0 only."""
        return {} if self.labeled is None else self.labeled.report(self.harmonizer)


def build_auxiliary(recipe: Recipe, images: ImageSet, method: Method) -> AuxiliaryState:
    """Build the auxiliary state for a recipe and its training set.

    Raises:
        RecipeError: If the harmonizer's settings do not fit.
    """
    harmonizer = None
    if recipe.harmonize is not None:
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
