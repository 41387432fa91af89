"""Estimators of the surrogate-class prior: a bank of embeddings, or the paper's vertex scores.

Shapes: N training samples, n samples of a batch, D width, K vertices, K' groups.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.functional import vertex_scores
from sslgh.harmonize.alignment import align_vertices, match_groups
from sslgh.harmonize.balanced_epochs import hierarchical_clusters, level_counts
from sslgh.harmonize.ema_bank import EmaBank
from sslgh.harmonize.kmeans import spherical_kmeans
from sslgh.harmonize.mode_clustering import find_modes, max_micro_clusters
from sslgh.recipe.harmonize import Harmonize


class Estimate(NamedTuple):
    """Result of a refresh.

    Attributes:
        labels: Vertex of every sample, shape (N,); -1 for a sample never seen.
        prior: Shares of the vertices, shape (K,); sum 1.
        vertices: The structure, rotated or unchanged, shape (K, D).
    """

    labels: Tensor
    prior: Tensor
    vertices: Tensor


class BankPopulation(nn.Module):
    """Moving averages of normalized embeddings, clustered with FAISS.

    Embeddings without modes are one group, as they often are early in training. One vertex for all
    would pull them to a point, so then the prior stays uniform and no sample is labeled.

    Args:
        num_samples: N.
        dim: D.
        settings: Settings of the recipe; ``vertices`` is the largest number of groups, ``clustering``
            "kmeans" is kept for comparison (it splits large classes, so its shares are far too flat).
            The default ``bank_momentum`` of 0.5 averages about the last two views of a sample:
            enough to smooth one augmentation, while a row stays one or two epochs old.
        seed: Seed of the clustering.
    """

    aligned: Tensor
    micro: Tensor
    num_micro: Tensor

    def __init__(self, num_samples: int, dim: int, settings: Harmonize, *, seed: int) -> None:
        super().__init__()
        self.memory = EmaBank(num_samples, dim)
        self.settings, self.seed = settings, seed
        self.register_buffer("aligned", torch.tensor(False))
        # Micro-clusters of the last estimate, where the next one starts.
        self.register_buffer(
            "micro", torch.zeros(max_micro_clusters(num_samples, settings.vertices), dim)
        )
        self.register_buffer("num_micro", torch.tensor(0))

    def update(self, z: Tensor, index: Tensor, vertices: Tensor, *, in_warmup: bool) -> None:
        """Average in embeddings (n, D) of the samples at ``index`` (n,)."""
        momentum = self.settings.bank_momentum
        self.memory.update(F.normalize(z.detach().float()), index, momentum=momentum)

    def estimate(self, vertices: Tensor, *, rotate: bool) -> Estimate:
        """Cluster the seen rows and give every group a vertex; rank 0 only.

        Args:
            vertices: The structure, shape (K, D).
            rotate: Whether it may still be rotated onto the groups, which happens once.
        """
        seen = self.memory.seen
        labels = torch.full_like(seen, -1, dtype=torch.int64)
        group_of, means = self._cluster(F.normalize(self.memory.rows[seen]).cpu())
        if len(means) == 1:
            return Estimate(
                labels,
                vertices.new_full((self.settings.vertices,), 1 / self.settings.vertices),
                vertices,
            )
        # Embeddings share a direction, vertices do not.
        means = means - means.mean(0)
        if rotate and self.settings.align and not self.aligned:
            vertices = align_vertices(vertices.cpu(), means).to(vertices)
            self.aligned.fill_(True)
        found = match_groups(means, vertices.cpu())[group_of].to(seen.device)
        labels[seen] = found
        prior = torch.bincount(found, minlength=self.settings.vertices).float()
        return Estimate(labels, prior / prior.sum(), vertices)

    def hierarchy(self) -> Tensor:
        """Nested clusters of the bank for balanced sampling; rank 0 only.

        Returns:
            Shape (L, N), int64, L as `level_counts` says; -1 for a sample never seen.
        """
        seen = self.memory.seen
        counts = level_counts(len(seen))
        clusters = torch.full((len(counts), len(seen)), -1, device=seen.device)
        rows = self.memory.rows[seen]
        clusters[:, seen] = hierarchical_clusters(rows, counts=counts, seed=self.seed)
        return clusters

    def _cluster(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Group of every row, and the groups' mean directions (K', D)."""
        if self.settings.clustering == "kmeans":
            count = min(self.settings.classes or self.settings.vertices, len(embeddings))
            means, labels = spherical_kmeans(embeddings, count, seed=self.seed)
            return labels, means
        groups = find_modes(
            embeddings,
            max_groups=self.settings.vertices,
            groups=self.settings.classes,
            seed=self.seed,
            start=self.micro[: int(self.num_micro)].cpu() if self.num_micro else None,
        )
        self.num_micro.fill_(len(groups.micro))
        self.micro[: len(groups.micro)] = groups.micro.to(self.micro)
        return groups.labels, groups.means


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

    def estimate(self, vertices: Tensor, *, rotate: bool) -> Estimate:
        """Histogram of the best vertices, which are never rotated; rank 0 only."""
        labels = self.memory.rows.argmax(1).masked_fill(~self.memory.seen, -1)
        counts = torch.bincount(labels[self.memory.seen], minlength=len(vertices)).float()
        counts += self.settings.prior_floor
        return Estimate(labels, counts / counts.sum(), vertices)
