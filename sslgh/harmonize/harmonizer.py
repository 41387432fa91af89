"""Geometric Harmonization as a plug-in for any self-supervised method."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.data.batch_sampler import ORDER, rng_for
from sslgh.distributed import broadcast, dist_info, gather
from sslgh.functional import harmonization_loss, inter_class_uniformity, uniform_frame
from sslgh.harmonize.alignment import align_vertices, keep_identity
from sslgh.harmonize.balanced_epochs import balanced_epoch, level_counts, weighted_epoch
from sslgh.harmonize.instance_weights import instance_weights
from sslgh.harmonize.population import (
    LEAST_VISIBILITY,
    CleanRows,
    ClusterPopulation,
    Estimate,
    PrototypePopulation,
    check_sizes,
    target_prior,
)
from sslgh.harmonize.refresh import Refresh, State, described
from sslgh.recipe.harmonize import Harmonize
from sslgh.recipe.loading import check_block

# Share of a new estimate in the averages over refreshes, once there were four.
LEAST_RATE = 0.25
CENTER_MOMENTUM = 0.99
LARGEST_STEP = 1.1  # of the adapted weight, per epoch


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
    ``population="prototypes"``. Make it after torch.distributed is initialized: the bank lives on rank 0.

    Clusters keep their identity over refreshes, and their shares are averaged over them. A refresh whose
    clusters do not recur (`Refresh.accepted`) changes nothing: until the first that do, weights are 1 and
    the term is 0. Then the vertices are turned onto the clusters once, the term is ramped from there, and
    weights are the shares to the power of minus ``weight_power`` times the visibility.

    With ``resample`` it also gives the loader its positions, ``epoch_indices(epoch)``: images of small
    clusters more often, instead of each image once. They are drawn an epoch ahead, because loaders
    prefetch: the first resampled epoch is the one after the first accepted refresh.

    Args:
        num_samples: N, size of the training set.
        dim: D, embedding width.
        num_vertices: K. A simplex for K <= D + 1, else the best frame found.
        warmup_epochs: Epochs before GH; the first refresh falls when they are over.
        clean: Whether `begin_epoch` is given a clean pass over the training set when `refresh_due`; if not,
            a bank of the observed embeddings is clustered.
        seed: Seed of the structure's orientation, the clustering and the order of the images (give the
            loader's, and an epoch before the first refresh is what it would be without GH).
        settings: Further settings: the fields of `sslgh.recipe.Harmonize`, the one place of their
            defaults, ranges and meaning. Among them ``population``, ``prior``, ``ramp_epochs``,
            ``refresh_every``, ``weight``, ``weight_power``, ``max_weight``, ``resample``, ``visibility``.

    Raises:
        ValueError: If there are more vertices than samples, more clusters than a fifth of them or, for
            "etf", more vertices than D + 1; if a setting is unknown or out of range, or does not go with
            another.
    """

    vertices: Tensor
    prior: Tensor
    labels: Tensor
    log_share: Tensor
    nearest: Tensor
    instance_weight: Tensor
    quality: Tensor
    epoch: Tensor
    refreshed: Tensor
    started: Tensor
    accepted: Tensor
    scale: Tensor
    center: Tensor
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
        clean: bool = False,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        settings |= {"vertices": num_vertices, "warmup_epochs": warmup_epochs, "clean": clean}
        gh = check_block(Harmonize, settings, prefix="harmonize")
        check_sizes(gh, num_samples, dim)
        self.settings, self.warmup_epochs, self.seed = gh, warmup_epochs, seed
        self.population: ClusterPopulation | PrototypePopulation
        if gh.population == "faiss":
            self.population = ClusterPopulation(num_samples, dim, gh, clean=clean, seed=seed)
        else:
            self.population = PrototypePopulation(num_samples, gh)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("vertices", uniform_frame(num_vertices, dim, generator=generator))
        self.register_buffer("prior", torch.full((num_vertices,), 1 / num_vertices))
        self.register_buffer("labels", torch.full((num_samples,), -1))
        self.register_buffer("log_share", torch.zeros(num_samples))
        self.register_buffer("nearest", torch.full((num_samples,), -1))
        self.register_buffer("instance_weight", torch.ones(num_samples))
        # Visibility averaged over accepted refreshes; then that of the last one, its two informations, and the
        # distance between its clusters.
        self.register_buffer("quality", torch.zeros(5))
        for name in ("epoch", "refreshed", "started"):
            self.register_buffer(name, torch.tensor(-1))
        self.register_buffer("accepted", torch.tensor(0))
        self.register_buffer("scale", torch.tensor(1.0))
        # Running sum and weight of the embeddings' mean, in one row.
        self.register_buffer("center", torch.zeros(dim + 1))
        # The prior in the term: set by begin_epoch from the other buffers, so nothing to save.
        self.register_buffer("target_marginal", self.prior.clone(), persistent=False)
        if self.resample:
            levels = len(level_counts(num_samples)) if gh.resample == "hierarchical" else 0
            self.register_buffer("clusters", torch.full((levels, num_samples), -1))
            # What this epoch shows and what the next one will, each in the row epoch % 2.
            self.register_buffer("sequences", torch.zeros(2, num_samples, dtype=torch.int64))
            self._draw(0)
        # Functions of the epoch, set by begin_epoch and kept on the host: nothing to save.
        self.ramp, self.in_warmup = 0.0, True
        self.last_refresh: Refresh | None = None

    @property
    def resample(self) -> bool:
        """Whether epochs show images of small clusters more often, instead of each image once."""
        return self.settings.resample is not None

    @property
    def loss_weight(self) -> float:
        """Weight of the GH term before it is adapted to its share of the gradient."""
        return self.settings.weight * self.ramp

    def refresh_due(self, epoch: int) -> bool:
        """Whether `begin_epoch` will refresh the population; the same on every rank."""
        refreshed = int(self.refreshed)
        due = refreshed < 0 or epoch - refreshed >= self.settings.refresh_every
        return epoch > int(self.epoch) and epoch >= self.warmup_epochs and due

    def begin_epoch(self, epoch: int, clean: CleanRows | None = None) -> None:
        """Set the weight of the GH term and refresh the population when due. Collective: call it on every rank.

        Idempotent: the last begun epoch is remembered, so that a resume in its middle does not
        cluster embeddings that have changed since.

        Args:
            epoch: Epoch that begins, counted from 0.
            clean: With ``clean=True``, when `refresh_due`: one evaluation pass over the training set (on
                rank 0; the others' is ignored).

        Raises:
            RuntimeError: If a clean pass is needed and missing, or given and not expected.
        """
        self.in_warmup = epoch < self.warmup_epochs
        if epoch > int(self.epoch):
            self._begin(epoch, clean)
        # The official code's ramp: epoch ``start`` has the weight 1 / ramp_epochs.
        start = int(self.started)
        steps = 0 if start < 0 else epoch + 1 - start
        self.ramp = min(max(steps / self.settings.ramp_epochs, 0.0), 1.0)
        self.target_marginal.copy_(self._target_marginal())

    def _begin(self, epoch: int, clean: CleanRows | None) -> None:
        expected = isinstance(self.population, ClusterPopulation) and self.population.clean
        if self.refresh_due(epoch) and (clean is not None) != expected:
            raise RuntimeError(
                "a harmonizer with clean=True needs begin_epoch(epoch, CleanRows(...)) when refresh_due(epoch), "
                "and one without takes none"
            )
        if self.refresh_due(epoch) and (clean is not None or self._has_seen()):
            self._refresh(epoch, clean)
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
        """Instance weights of the samples at ``index`` (n,): (n,), mean 1 over the training set; ones with ``resample``."""
        if self.resample:
            return torch.ones_like(index, dtype=torch.float32)
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
        center = self._center()
        loss = harmonization_loss(
            z1 - center,
            z2 - center,
            self.vertices,
            self.target_marginal,
            epsilon=self.settings.epsilon,
            temperature=self.settings.temperature,
            iterations=self.settings.iterations,
            tolerance=self.settings.tolerance,
        )
        return self.loss_weight * self.scale * loss

    def adapt(self, share: Tensor) -> None:
        """Move the weight of the term, by a tenth at most, to where its share stays within ``gh_share``.

        Call it once per epoch, the same on every rank.

        Args:
            share: Share () of the term in the gradient on the embeddings, as `gh_share` of
                `sslgh.engine.monitor.embeddings` measures it; a ramp is taken into account.
        """
        if self.settings.gh_share is None or self.loss_weight == 0:
            return
        low, high = (bound / (1 - bound) for bound in self.settings.gh_share)
        ratio = share / (1 - share) / self.ramp  # of the gradients, at full weight
        change = ratio.clamp(low, high) / ratio
        change = change.clamp(1 / LARGEST_STEP, LARGEST_STEP).nan_to_num(nan=1.0)
        self.scale.mul_(change)

    def observe(self, z: Tensor, index: Tensor) -> None:
        """Store embeddings (n, D) of the samples at ``index`` (n,), once per step. Collective: call it on every rank.

        No gradient is kept. Samples that occur twice count once; rows that are not finite are
        left out.
        """
        self.population.update(z, index, self.vertices, in_warmup=self.in_warmup)
        if isinstance(self.population, ClusterPopulation):
            self._move_center(z.detach().float(), self.weights(index))

    def _move_center(self, z: Tensor, weights: Tensor) -> None:
        """Average in a mean that weighs as the loss does: the largest cluster alone would draw it to itself."""
        finite = z.isfinite().all(1, keepdim=True)  # nothing here waits for the device
        weight = torch.where(finite, weights[:, None], 0)
        sums = torch.cat([(weight * z.nan_to_num()).sum(0), weight.sum(0)])
        total = gather(sums[None])[0].sum(0)
        self.center.lerp_(total / total[-1:].clamp(min=1e-12), 1 - CENTER_MOMENTUM)

    def _center(self) -> Tensor:
        """Running mean of the embeddings, shape (D,); 0 for the paper's scores."""
        return self.center[:-1] / self.center[-1].clamp(min=1e-12)

    def _has_seen(self) -> bool:
        seen = torch.zeros((), device=self.vertices.device)
        if dist_info().rank == 0:
            seen += self.population.memory.seen.any()
        broadcast(seen)
        return bool(seen)

    def _draw(self, epoch: int) -> None:
        rng = rng_for(self.seed, ORDER, epoch)
        if self.settings.resample == "clusters":
            shown = weighted_epoch(self.instance_weight.cpu().double().numpy(), rng)
        else:
            repeats = int(self.settings.max_weight)
            shown = balanced_epoch(self.clusters.cpu().numpy(), rng, most_repeats=repeats)
        self.sequences[epoch % 2] = torch.from_numpy(shown)

    def _target_marginal(self) -> Tensor:
        """Shares of the vertices that the term expects in a batch of the epoch, (K,)."""
        shown = self.sequences[int(self.epoch) % 2] if self.resample else slice(None)
        clustered = isinstance(self.population, ClusterPopulation)
        nearest = self.nearest[shown] if clustered else None
        return target_prior(self.settings.prior, self.prior, nearest)

    @torch.no_grad()
    def _refresh(self, epoch: int, clean: CleanRows | None) -> None:
        before = self._state()
        if dist_info().rank == 0:
            if isinstance(self.population, PrototypePopulation):
                self._take_histogram(self.population, epoch)
            else:
                self._take_clusters(self.population, epoch, clean)
        for buffer in (self.labels, self.prior, self.log_share, self.nearest, self.vertices):
            broadcast(buffer)
        for buffer in (self.instance_weight, self.quality, self.started, self.accepted):
            broadcast(buffer)
        if self.resample:
            broadcast(self.clusters)
        self.refreshed.fill_(epoch)
        measured = isinstance(self.population, ClusterPopulation)
        self.last_refresh = described(epoch, before, self._state(), measured=measured)

    def _state(self) -> State:
        names = ("labels", "prior", "instance_weight", "quality", "accepted")
        return State(*(getattr(self, name).detach().cpu().clone() for name in names))

    def _take_histogram(self, population: PrototypePopulation, epoch: int) -> None:
        """The paper's refresh: the histogram as it is."""
        self.labels.copy_(population.labels())
        self.prior.copy_(population.prior(self.labels))
        known = self.labels >= 0
        self.log_share.copy_(torch.where(known, self.prior[self.labels.clamp(min=0)].log(), 0))
        self.nearest.copy_(self.labels)
        self.quality.fill_(1)
        self.accepted.add_(1)
        if self.started < 0:
            self.started.fill_(epoch)
        self._weigh()

    def _take_clusters(
        self, population: ClusterPopulation, epoch: int, clean: CleanRows | None
    ) -> None:
        rows = population.rows(clean)
        found = population.estimate(rows)
        self.quality[1:4] = torch.tensor([found.visibility, found.recurring, found.noise])
        if found.visibility < LEAST_VISIBILITY:
            return
        self._average(found)
        if len(found.means) > 1:
            self.quality[4] = inter_class_uniformity(found.means).mean()
        if self.started < 0:
            # Later a turn would undo what the term has trained.
            if self.settings.align:
                self.vertices.copy_(align_vertices(self.vertices.cpu(), found.means))
            self.started.fill_(epoch)
        self.nearest.copy_(population.nearest(self.vertices, found.center, rows))
        if self.settings.resample == "hierarchical":
            self.clusters.copy_(population.hierarchy(rows, found.labels))
        self._weigh()

    def _average(self, found: Estimate) -> None:
        """Name the clusters as before, and average their shares with those of earlier refreshes."""
        self.accepted.add_(1)
        rate = max(1 / int(self.accepted), LEAST_RATE)
        device = self.labels.device
        labels = keep_identity(found.labels.to(device), self.labels, len(self.prior))
        known, before = labels >= 0, self.labels >= 0
        log_share = found.log_share.to(device)
        averaged = torch.where(before, self.log_share.lerp(log_share, rate), log_share)
        self.log_share.copy_(torch.where(known, averaged, self.log_share))
        self.labels.copy_(torch.where(known, labels, self.labels))
        counts = torch.bincount(labels[known], minlength=len(self.prior))
        self.prior.lerp_(counts / counts.sum(), rate)
        self.quality[0].lerp_(self.quality[1], rate)

    def _weigh(self) -> None:
        gh, known = self.settings, self.labels >= 0
        # With resample an image is shown a whole number of times.
        most = gh.max_weight if gh.resample is None else int(gh.max_weight)
        power = gh.weight_power * float(self.quality[0])
        weights = instance_weights(self.log_share.exp(), known, power=power, max_weight=most)
        self.instance_weight.copy_(weights)
