"""Two ways to know the population: a bank of embeddings, or the paper's vertex scores.

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


class Estimate(NamedTuple):
    """What a refresh learns about the population.

    Attributes:
        labels: Vertex of every sample, shape (N,); -1 for a sample never seen.
        prior: Shares of the vertices, shape (K,); sum 1.
        vertices: The structure, turned or as it was, shape (K, D).
    """

    labels: Tensor
    prior: Tensor
    vertices: Tensor


class BankPopulation(nn.Module):
    """Moving averages of normalized embeddings, clustered with FAISS.

    Embeddings without modes are one group, as they often are early in training. One vertex for all
    would pull them to a point, so then the prior stays uniform and nobody is labeled.

    Args:
        num_samples: N.
        dim: D.
        num_vertices: K, the most groups there can be.
        classes: Number of groups; None: found from the data.
        clustering: "groups" (micro-clusters, merged) or "kmeans" (plain, K clusters: it splits
            large classes, so its shares are far too flat; kept for comparison).
        momentum: Share of the old row. 0.5 averages about the last two views of a sample:
            enough to take the edge off one augmentation, while a row stays one or two epochs old.
        align: Turn the vertices onto the groups at the first estimate, before any embedding has
            been pulled toward them.
        seed: Of the clustering.
    """

    aligned: Tensor
    micro: Tensor
    num_micro: Tensor

    def __init__(
        self,
        num_samples: int,
        dim: int,
        *,
        num_vertices: int,
        classes: int | None,
        clustering: str,
        momentum: float,
        align: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.memory = EmaBank(num_samples, dim)
        self.num_vertices, self.classes, self.clustering = num_vertices, classes, clustering
        self.momentum, self.align, self.seed = momentum, align, seed
        self.register_buffer("aligned", torch.tensor(False))
        # Micro-clusters of the last estimate, where the next one starts.
        self.register_buffer(
            "micro", torch.zeros(max_micro_clusters(num_samples, num_vertices), dim)
        )
        self.register_buffer("num_micro", torch.tensor(0))

    def observe(self, z: Tensor, index: Tensor, vertices: Tensor, *, warm: bool) -> None:
        """Remember embeddings (n, D) of the samples at ``index`` (n,)."""
        self.memory.update(F.normalize(z.detach().float()), index, momentum=self.momentum)

    def estimate(self, vertices: Tensor, *, rotate: bool) -> Estimate:
        """Cluster the seen rows and give every group a vertex; process 0 only.

        Args:
            vertices: The structure, shape (K, D).
            rotate: Whether it may still be turned onto the groups, which happens once.
        """
        seen = self.memory.seen
        labels = torch.full_like(seen, -1, dtype=torch.int64)
        group_of, means = self._cluster(F.normalize(self.memory.rows[seen]).cpu())
        if len(means) == 1:
            return Estimate(
                labels, vertices.new_full((self.num_vertices,), 1 / self.num_vertices), vertices
            )
        # Embeddings share a direction, vertices do not.
        means = means - means.mean(0)
        if rotate and self.align and not self.aligned:
            vertices = align_vertices(vertices.cpu(), means).to(vertices)
            self.aligned.fill_(True)
        found = match_groups(means, vertices.cpu())[group_of].to(seen.device)
        labels[seen] = found
        prior = torch.bincount(found, minlength=self.num_vertices).float()
        return Estimate(labels, prior / prior.sum(), vertices)

    def hierarchy(self) -> Tensor:
        """Nested clusters of the bank for balanced sampling; process 0 only.

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
        if self.clustering == "kmeans":
            count = min(self.classes or self.num_vertices, len(embeddings))
            means, labels = spherical_kmeans(embeddings, count, seed=self.seed)
            return labels, means
        groups = find_modes(
            embeddings,
            max_groups=self.num_vertices,
            groups=self.classes,
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
        num_vertices: K.
        warmup_momentum: beta before GH begins.
        momentum: beta afterwards.
        prior_floor: Samples added to every vertex (100 in the code for ImageNet-LT, 0 for CIFAR).
    """

    def __init__(
        self,
        num_samples: int,
        num_vertices: int,
        *,
        warmup_momentum: float,
        momentum: float,
        prior_floor: int,
    ) -> None:
        super().__init__()
        self.memory = EmaBank(num_samples, num_vertices)
        self.warmup_momentum, self.momentum = warmup_momentum, momentum
        self.prior_floor = prior_floor

    def observe(self, z: Tensor, index: Tensor, vertices: Tensor, *, warm: bool) -> None:
        """Remember the scores of embeddings (n, D) of the samples at ``index`` (n,)."""
        momentum = self.warmup_momentum if warm else self.momentum
        self.memory.update(vertex_scores(z.detach(), vertices), index, momentum=momentum)

    def estimate(self, vertices: Tensor, *, rotate: bool) -> Estimate:
        """Histogram of the best vertices, which never turn; process 0 only."""
        labels = self.memory.rows.argmax(1).masked_fill(~self.memory.seen, -1)
        counts = torch.bincount(labels[self.memory.seen], minlength=len(vertices)).float()
        counts += self.prior_floor
        return Estimate(labels, counts / counts.sum(), vertices)
