"""Estimators of the population, clusters of its embeddings or the paper's vertex scores, and the prior of the term.

Shapes: N training samples, n samples of a batch, F feature width, D embedding width, K vertices, C clusters.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.functional import vertex_scores
from sslgh.harmonize.balanced_epochs import hierarchical_clusters, level_counts
from sslgh.harmonize.ema_bank import EmaBank
from sslgh.harmonize.kmeans import spherical_kmeans
from sslgh.harmonize.mode_clustering import find_modes
from sslgh.harmonize.recurrence import recurrence
from sslgh.recipe.harmonize import Harmonize

LEAST_IMAGES_PER_CLUSTER = 5
# Between what was measured where the rare kinds are hidden (random features, raw pixels of photos) and where they
# show (SimCLR on digits, pretrained features of photos); no data were held out for the choice.
LEAST_VISIBILITY = 0.25
# Recurrence is measured on at most so many samples: eight clusterings of more would take minutes on a CPU.
MOST_MEASURED = 20_000
FEWEST = 10  # samples that can be clustered
# Share of the flat prior in an estimated one: without it, vertices of no sample would repel all (their
# part of the term has no target, and its gradient points into the cone of the others).
FLAT = 0.5
POWER = 0.5  # of the power-law prior, k^-1/2


class CleanRows(NamedTuple):
    """One evaluation pass over the training set; rows of images that cannot be read are nan.

    Attributes:
        features: Backbone outputs, shape (N, F): what is clustered.
        embeddings: Projector outputs, shape (N, D): what the vertices are compared with.
    """

    features: Tensor
    embeddings: Tensor


class Estimate(NamedTuple):
    """Clusters of the population.

    Attributes:
        labels: Cluster of every sample, from 0, shape (N,); -1 for a sample never seen.
        log_share: Logarithm of the share of the sample's cluster, averaged over resamples, shape (N,); any
            value where never seen.
        means: Means of the clusters' embeddings less the mean of these means, shape (C, D).
        center: The mean of these means, shape (D,): where the many of a large cluster count no more than the
            few of a small one.
        visibility: Trust in the clusters, 0 to 1.
        recurring: Information (nats) that two resamples share.
        noise: The same for Gaussian noise of the same covariance.
    """

    labels: Tensor
    log_share: Tensor
    means: Tensor
    center: Tensor
    visibility: float
    recurring: float = 0.0
    noise: float = 0.0


class ClusterPopulation(nn.Module):
    """Clusters of centered, normalized features, and how far they recur.

    The rows come from a clean pass at each refresh, or from moving averages of the embeddings that
    `update` collects.

    Args:
        num_samples: N.
        dim: D.
        settings: Settings of the recipe; ``vertices`` is the largest number of clusters. The default
            ``bank_momentum`` of 0.5 averages about the last two views of a sample: enough to smooth one
            augmentation, while a row stays one or two epochs old.
        clean: Whether refreshes are given clean rows: then nothing is remembered.
        seed: Seed of the clustering.
    """

    def __init__(
        self, num_samples: int, dim: int, settings: Harmonize, *, clean: bool, seed: int
    ) -> None:
        super().__init__()
        self.memory = EmaBank(0 if clean else num_samples, dim)
        self.num_samples, self.settings = num_samples, settings
        self.clean, self.seed = clean, seed

    def update(self, z: Tensor, index: Tensor, vertices: Tensor, *, in_warmup: bool) -> None:
        """Average in embeddings (n, D) of the samples at ``index`` (n,)."""
        if not self.clean:
            momentum = self.settings.bank_momentum
            self.memory.update(F.normalize(z.detach().float()), index, momentum=momentum)

    def rows(self, clean: CleanRows | None) -> CleanRows:
        """What is known of the population, nan where nothing is; rank 0 only."""
        if clean is not None:
            return clean
        rows = torch.where(self.memory.seen[:, None], self.memory.rows, torch.nan)
        return CleanRows(rows, rows)

    def estimate(self, rows: CleanRows) -> Estimate:
        """Cluster the known rows and measure their visibility; rank 0 only."""
        known = _known(rows)
        labels = torch.full((self.num_samples,), -1)
        log_share = torch.zeros(self.num_samples)
        features = _centered(rows.features[known])
        if len(features) < FEWEST:
            none = torch.zeros(0, rows.embeddings.shape[1])
            return Estimate(labels, log_share, none, none.sum(0), 0.0)
        found = self._partition(features, self.seed)
        labels[known] = found
        visibility, recurring, noise = self.settings.visibility, 0.0, 0.0
        shares = (torch.bincount(found) / len(found)).log()[found]
        if visibility is None:
            order = torch.randperm(
                len(features), generator=torch.Generator().manual_seed(self.seed)
            )
            chosen = order[:MOST_MEASURED].sort().values
            measured = recurrence(features[chosen], self._partition, seed=self.seed)
            visibility, recurring, noise = measured.visibility, measured.recurring, measured.noise
            shares[chosen] = measured.log_share
        log_share[known] = shares
        embeddings = rows.embeddings[known].float().cpu()
        means = _cluster_means(embeddings, found)
        center = means.mean(0)
        return Estimate(labels, log_share, means - center, center, visibility, recurring, noise)

    def nearest(self, vertices: Tensor, center: Tensor, rows: CleanRows) -> Tensor:
        """Vertex of the largest score of each sample, shape (N,); -1 where unknown; rank 0 only."""
        known = _known(rows)
        nearest = torch.full((self.num_samples,), -1)
        embeddings = rows.embeddings[known].float().cpu() - center
        nearest[known] = vertex_scores(embeddings, vertices.cpu()).argmax(1)
        return nearest

    def hierarchy(self, rows: CleanRows, labels: Tensor) -> Tensor:
        """Nested clusters for balanced sampling, given the clusters (N,) of `estimate`; rank 0 only.

        The mean of the clusters' means is subtracted, and not that of all samples: around their own mean, those
        of a dominant cluster would lie in all directions.

        Returns:
            Shape (L, N), int64, L as `level_counts` says; -1 for a sample never seen.
        """
        known = _known(rows)
        counts = level_counts(len(known))
        clusters = torch.full((len(counts), len(known)), -1)
        features = rows.features[known].float().cpu()
        centered = features - _cluster_means(features, labels[known]).mean(0)
        clusters[:, known] = hierarchical_clusters(centered, counts=counts, seed=self.seed)
        return clusters

    def _partition(self, features: Tensor, seed: int) -> Tensor:
        """Cluster of every row, from 0, shape (n,)."""
        gh = self.settings
        if gh.clustering == "groups":
            groups = None if gh.classes is None else min(gh.classes, len(features))
            return find_modes(features, max_groups=gh.vertices, groups=groups, seed=seed).labels
        most = max(len(features) // LEAST_IMAGES_PER_CLUSTER, 1)
        count = min(gh.classes or gh.vertices, most)
        _, labels = spherical_kmeans(features, count, seed=seed)
        names: Tensor = torch.unique(labels, return_inverse=True)[1]  # empty clusters have no name
        return names


class PrototypePopulation(nn.Module):
    """Moving averages of vertex scores, the paper's (GH, arXiv:2310.17622, and its code).

    mu_i <- beta mu_i + (1 - beta) t_i; the prior is the histogram of argmax_j mu_ij. The
    published code starts from uninitialized memory; here a sample's first scores are taken.

    Args:
        num_samples: N.
        settings: Settings of the recipe, among them ``vertices`` (K), ``warmup_momentum`` and
            ``momentum`` (beta before and after GH begins) and ``prior_floor``.
    """

    def __init__(self, num_samples: int, settings: Harmonize) -> None:
        super().__init__()
        self.memory = EmaBank(num_samples, settings.vertices)
        self.settings = settings

    def update(self, z: Tensor, index: Tensor, vertices: Tensor, *, in_warmup: bool) -> None:
        """Average in the scores of embeddings (n, D) of the samples at ``index`` (n,)."""
        gh = self.settings
        momentum = gh.warmup_momentum if in_warmup else gh.momentum
        self.memory.update(vertex_scores(z.detach(), vertices), index, momentum=momentum)

    def labels(self) -> Tensor:
        """Vertex of the largest average score, shape (N,); -1 for a sample never seen; rank 0 only."""
        return self.memory.rows.argmax(1).masked_fill(~self.memory.seen, -1)

    def prior(self, labels: Tensor) -> Tensor:
        """Histogram of labels (N,), with ``prior_floor`` samples more on every vertex, shape (K,)."""
        counts = torch.bincount(labels[labels >= 0], minlength=self.settings.vertices).float()
        counts += self.settings.prior_floor
        return counts / counts.sum()


def _known(rows: CleanRows) -> Tensor:
    return rows.features.isfinite().all(1) & rows.embeddings.isfinite().all(1)


def _cluster_means(rows: Tensor, labels: Tensor) -> Tensor:
    """Mean row of each cluster, shape (C, .); ``labels`` (n,) from 0 without a gap."""
    counts = torch.bincount(labels)[:, None]
    return torch.zeros(len(counts), rows.shape[1]).index_add(0, labels, rows) / counts


def _centered(rows: Tensor) -> Tensor:
    """Directions from the mean: embeddings share a direction, which alone would decide which are alike."""
    rows = rows.detach().float().cpu()
    return F.normalize(rows - rows.mean(0), dim=1)


def target_prior(kind: str, histogram: Tensor, nearest: Tensor | None) -> Tensor:
    """Shares of the vertices that the GH term expects in a batch, shape (K,); with clusters never 0.

    Args:
        kind: ``harmonize.prior``: ``flat``, ``power`` or ``estimate``.
        histogram: Estimated shares of the surrogate classes, shape (K,): the paper's estimate.
        nearest: Nearest vertex of every image that the epoch shows, shape (N,), -1 for an image never seen; None:
            the histogram is the estimate.

    Examples:
        >>> target_prior("estimate", torch.tensor([0.9, 0.1]), torch.tensor([0, 0, 1, 0, -1]))
        tensor([0.6250, 0.3750])
    """
    flat = torch.full_like(histogram, 1 / len(histogram))
    if kind == "flat":
        return flat
    if kind == "power":
        law = torch.arange(1, len(flat) + 1, device=flat.device) ** -POWER
        return law / law.sum()
    if nearest is None:
        return histogram
    counts = torch.bincount(nearest[nearest >= 0], minlength=len(flat))
    return flat.lerp(counts / counts.sum(), 1 - FLAT) if counts.any() else flat


def check_sizes(gh: Harmonize, num_samples: int, dim: int) -> None:
    """Refuse numbers of vertices and classes that N samples of width D cannot have.

    Raises:
        ValueError: One sentence with both figures.
    """
    if gh.vertices > num_samples:
        raise ValueError(f"num_vertices is {gh.vertices}, but there are {num_samples} samples")
    if gh.classes is not None and gh.classes > gh.vertices:
        raise ValueError(f"classes is {gh.classes}, but there are only {gh.vertices} vertices")
    most = num_samples // LEAST_IMAGES_PER_CLUSTER
    if gh.classes is not None and gh.classes > most:
        raise ValueError(
            f"harmonize.classes is {gh.classes}, but {num_samples} images make at most {most} clusters "
            f"({LEAST_IMAGES_PER_CLUSTER} images each); lower it"
        )
    if gh.structure == "etf" and gh.vertices > dim + 1:
        raise ValueError(
            f"a simplex of {gh.vertices} vertices does not fit into {dim} dimensions; lower "
            f"harmonize.vertices to {dim + 1} or use structure: frame"
        )
