"""Auxiliary state outside the DDP module: harmonizer, EMA of the losses, label monitor, collapse alarm.

Shapes: n samples of a batch.
"""

from torch import Tensor, nn

from sslgh.data import ImageSet
from sslgh.engine.build import build_harmonizer
from sslgh.engine.monitor.embeddings import CollapseAlarm
from sslgh.engine.monitor.harm import HarmAlarm
from sslgh.engine.monitor.labels import LabelMonitor
from sslgh.harmonize import MomentumLoss
from sslgh.methods import Method, MethodOutput
from sslgh.recipe import Recipe


class AuxiliaryState(nn.Module):
    """Everything that is updated with the method but not trained by DDP; saved in every checkpoint.

    Args:
        recipe: The experiment.
        images: Training set.
        method: Method whose outputs are stored and monitored.

    Attributes:
        harmonizer: Geometric Harmonization, or None.
        boost: EMA of the per-sample losses, for boosted augmentation, or None.
        labeled: Monitor with labels; None for an unlabeled training set.
        alarm: Alarm for collapsed embeddings.
        harm: Alarm for a GH that harms; only with GH.

    Raises:
        RecipeError: If the harmonizer's settings do not fit.
    """

    def __init__(self, recipe: Recipe, images: ImageSet, method: Method) -> None:
        super().__init__()
        n, width, boost, labels = len(images), method.embedding_dim, recipe.boost, images.labels
        self.harmonizer = None if recipe.harmonize is None else build_harmonizer(recipe, n, width)
        self.boost = None if boost is None else MomentumLoss(n, momentum=boost.momentum)
        self.labeled = None if labels is None else LabelMonitor(labels, images.class_counts, method)
        self.alarm = CollapseAlarm(width)
        if self.harmonizer is not None:
            self.harm = HarmAlarm()

    def update(self, output: MethodOutput, index: Tensor, *, logged: bool) -> dict[str, Tensor]:
        """Store detached outputs for the samples at ``index`` (n,); metrics for the log. Collective: call it on every rank."""
        if self.harmonizer is not None:
            self.harmonizer.observe(output.embeddings[0], index)
        if self.boost is not None:
            assert output.per_sample is not None
            self.boost.observe(output.per_sample, index)
        return {} if self.labeled is None else self.labeled.update(output, index, logged=logged)
