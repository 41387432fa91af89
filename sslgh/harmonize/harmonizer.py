"""Geometric Harmonization as a plug-in for any self-supervised method."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslgh.distributed import broadcast, gather, world
from sslgh.functional import harmonization_loss, uniform_frame
from sslgh.harmonize.population import BankPopulation, PrototypePopulation
from sslgh.harmonize.weights import instance_weights


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
        ...  # backward, optimiser step
        harmonizer.observe(output.embeddings[0], index)

    The default population ("faiss") and instance weights are this project's; the paper is
    ``population="prototypes", weight_power=0``. Make it after torch.distributed is
    initialised: the memory lives on process 0.

    Args:
        num_samples: N, size of the training set.
        dim: D, embedding width.
        num_vertices: K. A simplex for K <= D + 1, else the best frame found.
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
        weight_power: w_i = min(c prior[label_i]^-power, max_weight), mean 1; 0: all ones.
        max_weight: Largest instance weight.
        bank_momentum: faiss: share of the old bank row kept.
        warmup_momentum: prototypes: beta before GH begins.
        momentum: prototypes: beta afterwards.
        prior_floor: prototypes: samples added to every vertex.
        align: faiss: turn the vertices onto the groups before the first GH step. None: yes for
            faiss.
        seed: Of the structure's orientation and the clustering.

    Raises:
        ValueError: If there are more vertices than samples, or an option belongs to the other
            population.
    """

    vertices: Tensor
    prior: Tensor
    labels: Tensor
    instance_weight: Tensor
    epoch: Tensor
    refreshed: Tensor

    def __init__(  # noqa: PLR0913 - one keyword a setting of the recipe
        self,
        num_samples: int,
        dim: int,
        *,
        num_vertices: int = 100,
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
        weight_power: float = 0.5,
        max_weight: float = 10.0,
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
        self.warmup_epochs, self.ramp_epochs = warmup_epochs, ramp_epochs
        self.refresh_every, self.final_weight = refresh_every, weight
        self.weight_power, self.max_weight = weight_power, max_weight
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
        # Functions of the epoch, set by begin_epoch and kept on the host: nothing to save.
        self.scale, self.warm = 0.0, True
        self.last_refresh: Refresh | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Set the weight of the GH term and refresh the population when due; a collective.

        Idempotent: the last begun epoch is remembered, so that a resume in its middle does not
        cluster a bank that has changed since.

        Args:
            epoch: From 0.
        """
        ramp = (epoch - self.warmup_epochs) / self.ramp_epochs
        self.scale = self.final_weight * min(max(ramp, 0.0), 1.0)
        self.warm = epoch < self.warmup_epochs
        if epoch <= int(self.epoch):
            return
        refreshed = int(self.refreshed)
        due = refreshed < 0 or epoch - refreshed >= self.refresh_every
        if epoch >= self.warmup_epochs and due and self._has_seen():
            self._refresh(epoch)
        self.epoch.fill_(epoch)

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
        everyone, _ = gather(torch.cat([z1, z2], dim=1).float())
        z1, z2 = everyone.chunk(2, dim=1)
        return self.scale * self.loss(z1, z2, self.vertices, self.prior)

    def observe(self, z: Tensor, index: Tensor) -> None:
        """Remember embeddings (n, D) of the samples at ``index`` (n,), once a step; a collective.

        No gradient is kept. Samples that occur twice count once; rows that are not finite are
        left out.
        """
        self.population.observe(z, index, self.vertices, warm=self.warm)

    def _has_seen(self) -> bool:
        seen = torch.zeros((), device=self.vertices.device)
        if world().rank == 0:
            seen += self.population.memory.seen.any()
        broadcast(seen)
        return bool(seen)

    @torch.no_grad()
    def _refresh(self, epoch: int) -> None:
        old_labels, old_prior = self.labels.clone(), self.prior.clone()
        if world().rank == 0:
            # Once embeddings were pulled to the vertices, a turn would tear them.
            untouched = epoch <= self.warmup_epochs + 1
            estimate = self.population.estimate(self.vertices, turn=untouched)
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
        for buffer in (self.labels, self.prior, self.vertices, self.instance_weight):
            broadcast(buffer)
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
