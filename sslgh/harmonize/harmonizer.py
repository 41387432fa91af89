"""Geometric Harmonization as a plug-in for any self-supervised method."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.data.batch_sampler import ORDER, rng_for
from sslgh.distributed import broadcast, dist_info, gather
from sslgh.functional import harmonization_loss, uniform_frame
from sslgh.harmonize.balanced_epochs import balanced_epoch, level_counts
from sslgh.harmonize.instance_weights import instance_weights
from sslgh.harmonize.population import BankPopulation, PrototypePopulation
from sslgh.recipe.harmonize import Harmonize
from sslgh.recipe.loading import check_block


class Refresh(NamedTuple):
    """Result of the last refresh, for the log.

    Attributes:
        epoch: Epoch of the refresh.
        classes: Surrogate classes with at least one sample; 1 where the embeddings show none yet.
        largest: Share of the largest.
        smallest: Share of the smallest that has any.
        churn: Share of the samples whose surrogate label changed; 1 at the first refresh.
        drift: Total variation between the new and the old prior.
        largest_weight: Largest instance weight.
    """

    epoch: int
    classes: int
    largest: float
    smallest: float
    churn: float
    drift: float
    largest_weight: float


class GeometricHarmonizer(nn.Module):
    """Geometric Harmonization (GH, arXiv:2310.17622): surrogate labels, prior, loss and weights.

    An ordinary module whose whole state is buffers; it has no parameters. Keep it outside a
    DDP wrapper, which would broadcast the buffers at every forward. Use in any loop::

        harmonizer.begin_epoch(epoch)
        weights = harmonizer.weights(index)
        output = method(views, weights)
        loss = output.loss + harmonizer(*output.embeddings)
        ...  # backward, optimizer step
        harmonizer.observe(output.embeddings[0], index)

    The default population ("faiss") and instance weights are this project's; the paper is
    ``population="prototypes", weight_power=0``. Make it after torch.distributed is
    initialized: the bank lives on rank 0.

    With ``resample`` it also gives the loader its positions, ``epoch_indices(epoch)``: balanced
    over a hierarchy of clusters of the bank, instead of each image once. They are drawn an epoch
    ahead, because loaders prefetch: the first balanced epoch is the one after the first refresh.
    The GH term then expects the shares that the epoch shows, not those of the population.

    Args:
        num_samples: N, size of the training set.
        dim: D, embedding width.
        num_vertices: K. A simplex for K <= D + 1, else the best frame found.
        warmup_epochs: Epochs before GH; the first refresh falls when they are over.
        seed: Seed of the structure's orientation, the clustering and the order of the images (give the
            loader's, and an epoch before the first refresh is what it would be without GH).
        settings: Further settings: the fields of `sslgh.recipe.Harmonize`, the one place of their
            defaults, ranges and meaning. Among them ``population``, ``ramp_epochs``,
            ``refresh_every``, ``weight``, ``weight_power``, ``max_weight``, ``resample``, ``align``.

    Raises:
        ValueError: If there are more vertices than samples or, for "etf", than D + 1; if a setting is
            unknown or out of range, or does not go with another.
    """

    vertices: Tensor
    prior: Tensor
    labels: Tensor
    instance_weight: Tensor
    epoch: Tensor
    refreshed: Tensor
    clusters: Tensor
    sequences: Tensor
    target_marginal: Tensor

    def __init__(
        self,
        num_samples: int,
        dim: int,
        *,
        num_vertices: int = Harmonize.model_fields["vertices"].default,
        warmup_epochs: int = 0,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        block = {"vertices": num_vertices, "warmup_epochs": warmup_epochs, **settings}
        gh = check_block(Harmonize, block, prefix="harmonize")
        _check_sizes(gh, num_samples, dim)
        self.settings, self.warmup_epochs, self.seed = gh, warmup_epochs, seed
        self.population: BankPopulation | PrototypePopulation
        if gh.population == "faiss":
            self.population = BankPopulation(num_samples, dim, gh, seed=seed)
        else:
            self.population = PrototypePopulation(num_samples, gh)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("vertices", uniform_frame(num_vertices, dim, generator=generator))
        self.register_buffer("prior", torch.full((num_vertices,), 1 / num_vertices))
        self.register_buffer("labels", torch.full((num_samples,), -1))
        self.register_buffer("instance_weight", torch.ones(num_samples))
        self.register_buffer("epoch", torch.tensor(-1))
        self.register_buffer("refreshed", torch.tensor(-1))
        # The prior in the term: set by begin_epoch from the other buffers, so nothing to save.
        self.register_buffer("target_marginal", self.prior.clone(), persistent=False)
        if self.resample:
            levels = len(level_counts(num_samples))
            self.register_buffer("clusters", torch.full((levels, num_samples), -1))
            # What this epoch shows and what the next one will, each in the row epoch % 2.
            self.register_buffer("sequences", torch.zeros(2, num_samples, dtype=torch.int64))
            self._draw(0)
        # Functions of the epoch, set by begin_epoch and kept on the host: nothing to save.
        self.loss_weight, self.in_warmup = 0.0, True
        self.last_refresh: Refresh | None = None

    @property
    def resample(self) -> bool:
        """Whether epochs are balanced over clusters, instead of showing each image once."""
        return self.settings.resample is not None

    def begin_epoch(self, epoch: int) -> None:
        """Set the weight of the GH term and refresh the population when due. Collective: call it on every rank.

        Idempotent: the last begun epoch is remembered, so that a resume in its middle does not
        cluster a bank that has changed since.

        Args:
            epoch: Epoch that begins, counted from 0.
        """
        ramp = (epoch - self.warmup_epochs) / self.settings.ramp_epochs
        self.loss_weight = self.settings.weight * min(max(ramp, 0.0), 1.0)
        self.in_warmup = epoch < self.warmup_epochs
        if epoch > int(self.epoch):
            self._begin(epoch)
        self.target_marginal.copy_(self._target_marginal())

    def _begin(self, epoch: int) -> None:
        refreshed = int(self.refreshed)
        due = refreshed < 0 or epoch - refreshed >= self.settings.refresh_every
        if epoch >= self.warmup_epochs and due and self._has_seen():
            self._refresh(epoch)
        if self.resample:  # this epoch was drawn when the last one began, unless that was left out
            for undrawn in range(max(int(self.epoch) + 2, epoch), epoch + 2):
                if dist_info().rank == 0:
                    self._draw(undrawn)
                broadcast(self.sequences[undrawn % 2])
        self.epoch.fill_(epoch)

    def epoch_indices(self, epoch: int) -> NDArray[np.int64]:
        """Positions of the images that an epoch shows, in order, shape (N,): with ``resample`` only.

        The same on every rank, and after a resume.

        Args:
            epoch: Last begun epoch, or the one after it.

        Raises:
            RuntimeError: If without ``resample``.
            ValueError: If it is any other epoch: a loader that fetches more than an epoch ahead
                would show images that are not balanced.
        """
        if not self.resample:
            raise RuntimeError("without resample an epoch shows each image once, in any order")
        begun = int(self.epoch)
        if not max(begun, 0) <= epoch <= begun + 1:
            raise ValueError(
                f"harmonize.resample was asked for the images of epoch {epoch} while only epochs up to "
                f"{begun + 1} are drawn; lower data.workers, so that they fetch less than an epoch ahead"
            )
        return self.sequences[epoch % 2].cpu().numpy()

    def weights(self, index: Tensor) -> Tensor:
        """Instance weights of the samples at ``index`` (n,): (n,), mean 1 over the training set."""
        return self.instance_weight[index]

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The weighted GH term on the samples of all ranks.

        Args:
            z1: Local embeddings of the first view, shape (n, D), with gradient.
            z2: Local embeddings of the second view, shape (n, D), with gradient.

        Returns:
            Shape (); 0 during warm-up. The same number on every rank; once DDP has averaged, the
            gradient is that of one process on the whole batch.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if self.loss_weight == 0:
            return z1.new_zeros(())
        gathered, _ = gather(torch.cat([z1, z2], dim=1).float())
        z1, z2 = gathered.chunk(2, dim=1)
        loss = harmonization_loss(
            z1,
            z2,
            self.vertices,
            self.target_marginal,
            epsilon=self.settings.epsilon,
            temperature=self.settings.temperature,
            iterations=self.settings.iterations,
            tolerance=self.settings.tolerance,
        )
        return self.loss_weight * loss

    def observe(self, z: Tensor, index: Tensor) -> None:
        """Store embeddings (n, D) of the samples at ``index`` (n,), once per step. Collective: call it on every rank.

        No gradient is kept. Samples that occur twice count once; rows that are not finite are
        left out.
        """
        self.population.update(z, index, self.vertices, in_warmup=self.in_warmup)

    def _has_seen(self) -> bool:
        seen = torch.zeros((), device=self.vertices.device)
        if dist_info().rank == 0:
            seen += self.population.memory.seen.any()
        broadcast(seen)
        return bool(seen)

    def _draw(self, epoch: int) -> None:
        shown = balanced_epoch(
            self.clusters.cpu().numpy(),
            rng_for(self.seed, ORDER, epoch),
            most_repeats=int(self.settings.max_weight),
        )
        self.sequences[epoch % 2] = torch.from_numpy(shown)

    def _target_marginal(self) -> Tensor:
        """Shares of the vertices that the term expects in a batch of the epoch, (K,)."""
        if self.settings.uniform_prior:
            return torch.full_like(self.prior, 1 / len(self.prior))
        if not self.resample:
            return self.prior
        labels = self.labels[self.sequences[int(self.epoch) % 2]]
        counts = torch.bincount(labels[labels >= 0], minlength=len(self.prior))
        return counts / counts.sum() if counts.any() else self.prior

    @torch.no_grad()
    def _refresh(self, epoch: int) -> None:
        old_labels, old_prior = self.labels.clone(), self.prior.clone()
        if dist_info().rank == 0:
            # A rotation after embeddings were pulled to the vertices would undo the training.
            untouched = epoch <= self.warmup_epochs + 1
            estimate = self.population.estimate(self.vertices, rotate=untouched)
            self.labels.copy_(estimate.labels)
            self.prior.copy_(estimate.prior)
            self.vertices.copy_(estimate.vertices)
            self.instance_weight.copy_(
                instance_weights(
                    estimate.labels,
                    estimate.prior,
                    estimate.labels >= 0,
                    power=self.settings.weight_power,
                    max_weight=self.settings.max_weight,
                )
            )
            if self.resample:
                assert isinstance(self.population, BankPopulation)
                self.clusters.copy_(self.population.hierarchy())
        for buffer in (self.labels, self.prior, self.vertices, self.instance_weight):
            broadcast(buffer)
        if self.resample:
            broadcast(self.clusters)
        self.refreshed.fill_(epoch)
        counts = torch.bincount(self.labels[self.labels >= 0], minlength=1)
        shares = counts[counts > 0] / counts.sum() if counts.any() else counts.new_ones(1).float()
        self.last_refresh = Refresh(
            epoch=epoch,
            classes=len(shares),
            largest=float(shares.max()),
            smallest=float(shares.min()),
            churn=float((self.labels != old_labels).float().mean()),
            drift=float((self.prior - old_prior).abs().sum() / 2),
            largest_weight=float(self.instance_weight.max()),
        )


def _check_sizes(gh: Harmonize, num_samples: int, dim: int) -> None:
    if gh.vertices > num_samples:
        raise ValueError(f"num_vertices is {gh.vertices}, but there are {num_samples} samples")
    if gh.classes is not None and gh.classes > gh.vertices:
        raise ValueError(f"classes is {gh.classes}, but there are only {gh.vertices} vertices")
    if gh.structure == "etf" and gh.vertices > dim + 1:
        raise ValueError(
            f"a simplex of {gh.vertices} vertices does not fit into {dim} dimensions; lower "
            f"harmonize.vertices to {dim + 1} or use structure: frame"
        )
