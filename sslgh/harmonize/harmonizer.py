"""Geometric Harmonization as a plug-in for any self-supervised method."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.data.rng import ORDER, rng_for
from sslgh.distributed import broadcast, dist_info, gather
from sslgh.functional import harmonization_loss, uniform_frame
from sslgh.harmonize.balanced_epochs import balanced_epoch, level_counts
from sslgh.harmonize.instance_weights import instance_weights
from sslgh.harmonize.population import BankPopulation, PrototypePopulation


class Refresh(NamedTuple):
    """What the last refresh found, for the log.

    Attributes:
        epoch: When.
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
    initialized: the memory lives on process 0.

    With ``resample`` it also says what a loader shows: the positions ``sequence(epoch)``, balanced
    over a hierarchy of clusters of the bank, instead of each image once. They are drawn an epoch
    ahead, because loaders prefetch: the first balanced epoch is the one after the first refresh.
    The GH term then expects the shares that the epoch shows, not those of the population.

    Args:
        num_samples: N, size of the training set.
        dim: D, embedding width.
        num_vertices: K. A simplex for K <= D + 1, else the best frame found.
        structure: "frame", or "etf" for a simplex or nothing.
        population: "faiss" clusters a bank of embeddings; "prototypes" averages vertex scores.
        classes: faiss: number of surrogate classes; None: found from the data.
        clustering: faiss: "groups" or "kmeans".
        warmup_epochs: Epochs before GH; the first refresh falls when they are over.
        ramp_epochs: The GH weight at epoch e is clip((e - warmup) / ramp, 0, 1) * weight.
        refresh_every: Epochs between two refreshes of prior and labels.
        weight: Final weight of the GH term.
        epsilon: Of Sinkhorn.
        temperature: Of the geometric prediction.
        iterations: Of Sinkhorn.
        tolerance: Of Sinkhorn; None runs all iterations.
        uniform_prior: The GH term expects equal shares, as SwAV's equal partition does; labels
            and weights still come from the estimate.
        weight_power: w_i = min(c prior[label_i]^-power, max_weight), mean 1; 0: all ones. None:
            0.5, or 0 with ``resample``.
        max_weight: Largest instance weight; with ``resample`` how often an epoch may show one image.
        resample: faiss: None (each image once an epoch) or "hierarchical" (Vo et al.,
            arXiv:2405.15613), an alternative to weights.
        bank_momentum: faiss: share of the old bank row kept.
        warmup_momentum: prototypes: beta before GH begins.
        momentum: prototypes: beta afterwards.
        prior_floor: prototypes: samples added to every vertex.
        align: faiss: turn the vertices onto the groups before the first GH step. None: yes for
            faiss.
        seed: Of the structure's orientation, the clustering and the order of the images (give the
            loader's, and an epoch before the first refresh is what it would be without GH).

    Raises:
        ValueError: If there are more vertices than samples or, for "etf", than D + 1; if an option
            belongs to the other population, or both weights and ``resample`` are given.
    """

    vertices: Tensor
    prior: Tensor
    labels: Tensor
    instance_weight: Tensor
    epoch: Tensor
    refreshed: Tensor
    clusters: Tensor
    sequences: Tensor
    expected: Tensor

    def __init__(  # noqa: PLR0913 - one keyword a setting of the recipe
        self,
        num_samples: int,
        dim: int,
        *,
        num_vertices: int = 100,
        structure: str = "frame",
        population: str = "faiss",
        classes: int | None = None,
        clustering: str = "groups",
        warmup_epochs: int = 0,
        ramp_epochs: int = 10,
        refresh_every: int = 20,
        weight: float = 1.0,
        epsilon: float = 0.05,
        temperature: float = 0.1,
        iterations: int = 300,
        tolerance: float | None = None,
        uniform_prior: bool = False,
        weight_power: float | None = None,
        max_weight: float = 10.0,
        resample: str | None = None,
        bank_momentum: float = 0.5,
        warmup_momentum: float = 0.9,
        momentum: float = 0.999,
        prior_floor: int = 0,
        align: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_vertices > num_samples:
            raise ValueError(f"num_vertices is {num_vertices}, but there are {num_samples} samples")
        if classes is not None and classes > num_vertices:
            raise ValueError(f"classes is {classes}, but there are only {num_vertices} vertices")
        _check_structure(structure, num_vertices, dim)
        if weight_power is None:
            weight_power = 0.0 if resample else 0.5
        _check_resample(resample, population, weight_power, max_weight)
        self.warmup_epochs, self.ramp_epochs = warmup_epochs, ramp_epochs
        self.refresh_every, self.final_weight = refresh_every, weight
        self.weight_power, self.max_weight = weight_power, max_weight
        self.uniform_prior, self.resample, self.seed = uniform_prior, resample is not None, seed
        self.loss = partial(
            harmonization_loss,
            epsilon=epsilon,
            temperature=temperature,
            iterations=iterations,
            tolerance=tolerance,
        )
        self.population: BankPopulation | PrototypePopulation
        if population == "faiss":
            self.population = BankPopulation(
                num_samples,
                dim,
                num_vertices=num_vertices,
                classes=classes,
                clustering=clustering,
                momentum=bank_momentum,
                align=align is not False,
                seed=seed,
            )
        elif population == "prototypes":
            if align:
                raise ValueError(
                    "align turns the vertices and makes stored scores meaningless; use population='faiss'"
                )
            self.population = PrototypePopulation(
                num_samples,
                num_vertices,
                warmup_momentum=warmup_momentum,
                momentum=momentum,
                prior_floor=prior_floor,
            )
        else:
            raise ValueError(f"population must be 'faiss' or 'prototypes', got {population!r}")
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("vertices", uniform_frame(num_vertices, dim, generator=generator))
        self.register_buffer("prior", torch.full((num_vertices,), 1 / num_vertices))
        self.register_buffer("labels", torch.full((num_samples,), -1))
        self.register_buffer("instance_weight", torch.ones(num_samples))
        self.register_buffer("epoch", torch.tensor(-1))
        self.register_buffer("refreshed", torch.tensor(-1))
        # The prior in the term: set by begin_epoch from the other buffers, so nothing to save.
        self.register_buffer("expected", self.prior.clone(), persistent=False)
        if self.resample:
            levels = len(level_counts(num_samples))
            self.register_buffer("clusters", torch.full((levels, num_samples), -1))
            # What this epoch shows and what the next one will, each in the row epoch % 2.
            self.register_buffer("sequences", torch.zeros(2, num_samples, dtype=torch.int64))
            self._draw(0)
        # Functions of the epoch, set by begin_epoch and kept on the host: nothing to save.
        self.scale, self.warm = 0.0, True
        self.last_refresh: Refresh | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Set the weight of the GH term and refresh the population when due. Collective: call it on every rank.

        Idempotent: the last begun epoch is remembered, so that a resume in its middle does not
        cluster a bank that has changed since.

        Args:
            epoch: From 0.
        """
        ramp = (epoch - self.warmup_epochs) / self.ramp_epochs
        self.scale = self.final_weight * min(max(ramp, 0.0), 1.0)
        self.warm = epoch < self.warmup_epochs
        if epoch > int(self.epoch):
            self._begin(epoch)
        self.expected.copy_(self._expected())

    def _begin(self, epoch: int) -> None:
        refreshed = int(self.refreshed)
        due = refreshed < 0 or epoch - refreshed >= self.refresh_every
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

        The same on every process, and after a resume.

        Args:
            epoch: The one that was begun last, or the one after it.

        Raises:
            RuntimeError: If without ``resample``.
            ValueError: If the epoch is another one: a loader that fetches more than an epoch ahead
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
        """The weighted GH term on the samples of all processes.

        Args:
            z1: Own embeddings of the first view, shape (n, D), with gradient.
            z2: Of the second view, shape (n, D).

        Returns:
            Shape (); 0 during warm-up. The same number on every process, with the gradient of
            one process on the whole batch once DDP has averaged.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if self.scale == 0:
            return z1.new_zeros(())
        gathered, _ = gather(torch.cat([z1, z2], dim=1).float())
        z1, z2 = gathered.chunk(2, dim=1)
        return self.scale * self.loss(z1, z2, self.vertices, self.expected)

    def observe(self, z: Tensor, index: Tensor) -> None:
        """Remember embeddings (n, D) of the samples at ``index`` (n,), once a step. Collective: call it on every rank.

        No gradient is kept. Samples that occur twice count once; rows that are not finite are
        left out.
        """
        self.population.observe(z, index, self.vertices, warm=self.warm)

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
            most_repeats=int(self.max_weight),
        )
        self.sequences[epoch % 2] = torch.from_numpy(shown)

    def _expected(self) -> Tensor:
        """Shares of the vertices that the term is to find in a batch of the epoch, (K,)."""
        if self.uniform_prior:
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
            # Once embeddings were pulled to the vertices, a turn would tear them.
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
                    power=self.weight_power,
                    max_weight=self.max_weight,
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


def _check_structure(structure: str, num_vertices: int, dim: int) -> None:
    if structure not in ("frame", "etf"):
        raise ValueError(f"structure must be 'frame' or 'etf', got {structure!r}")
    if structure == "etf" and num_vertices > dim + 1:
        raise ValueError(
            f"a simplex of {num_vertices} vertices does not fit into {dim} dimensions; lower "
            f"harmonize.vertices to {dim + 1} or use structure: frame"
        )


def _check_resample(
    resample: str | None, population: str, weight_power: float, max_weight: float
) -> None:
    if resample is None:
        return
    if resample != "hierarchical":
        raise ValueError(f"resample must be 'hierarchical' or None, got {resample!r}")
    if population != "faiss":
        raise ValueError("resample clusters a bank of embeddings; use population='faiss'")
    if weight_power != 0:
        raise ValueError(
            f"resample replaces instance weights, but weight_power is {weight_power}; leave one of the "
            "two out"
        )
    if max_weight < 2:
        raise ValueError(
            f"resample would show no image twice, since max_weight is {max_weight:g}; set it to 2 or more"
        )
