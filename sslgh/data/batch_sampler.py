"""The order in which a run sees its images, and the random numbers of each: pure functions of the seed."""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

# The first word of every stream's key after the seed: no two purposes share a stream.
ORDER, VIEWS, WEAK, QUOTA, ROUND, LABELED, LOCAL, SUBSTITUTE = range(8)
# Epoch and repeat share a word of 64 bits.
REPEAT = 2**32


def rng_for(
    seed: int, purpose: int, epoch: int, index: int = 0, repeat: int = 0
) -> np.random.Generator:
    """Generator of one purpose, epoch and image; ``repeat``: how often the epoch has shown the image before.

    Philox is counter-based: streams whose counters differ in the upper words cannot overlap, and
    neither the number of workers nor a resumed run can change what an image gets.
    """
    counter = [0, 0, epoch + REPEAT * repeat, index]
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))


class SampleKey(NamedTuple):
    """What the random numbers of a sample depend on, besides the seed.

    Attributes:
        epoch: Epoch, from 0.
        repeat: How often the epoch has shown the image before.
        index: Position of the image in the training set.
    """

    epoch: int
    repeat: int
    index: int  # type: ignore[assignment]  # hides tuple.index


class ResumableBatchSampler(Sampler[list[SampleKey]]):
    """Batches of ``SampleKey`` for one rank, over the whole rest of a run.

    The order of an epoch is a function of seed and epoch. A global batch is cut into ``accumulation``
    micro-batches and each of them into contiguous shards for the ranks, so that shards gathered in the
    order of ranks are the micro-batch that one process would see. One stream crosses the borders of
    epochs: workers are never started again. No image is repeated to fill a batch; a last batch with
    fewer than max(2, smallest_part * world_size * accumulation) images is left out.

    ``epoch_indices`` may show an image several times in an epoch: ``repeat`` counts them, so that each
    gets a view of its own.

    Args:
        num_samples: Images of the training set.
        batch_size: Images of one optimizer step, over all ranks and micro-batches.
        seed: Random seed of the run.
        epochs: Passes over the training set.
        start: Epoch and optimizer step within it at which the stream begins (a resumed run).
        drop_last: Leave out a last batch that is not full.
        rank: This rank.
        world_size: Number of ranks.
        accumulation: Micro-batches of one step.
        epoch_indices: The ``num_samples`` positions that an epoch shows, in order, as ``class_sampling``
            gives them; None: a permutation of all images.
        smallest_part: Images that a rank's shard of a micro-batch must hold: 2 if an image has one view,
            since batch statistics need two.

    Attributes:
        steps_per_epoch: Optimizer steps of an epoch.

    Raises:
        ValueError: If a step would hold too few images, or the start lies outside the run; while
            iterating, if the sequence gives an epoch of another length.

    Examples:
        >>> order = ResumableBatchSampler(5, 2, seed=0, epochs=1)
        >>> order.steps_per_epoch, [len(batch) for batch in order]
        (2, [2, 2])
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        epochs: int,
        start: tuple[int, int] = (0, 0),
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        epoch_indices: Callable[[int], NDArray[np.int64]] | None = None,
        smallest_part: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        if batch_size < 2 * world_size * accumulation:
            raise _small_batch(batch_size, world_size, accumulation)
        self.num_samples, self.batch_size, self.accumulation = num_samples, batch_size, accumulation
        self.seed, self.epochs, self.start = seed, epochs, start
        self.rank, self.world_size, self.epoch_indices = rank, world_size, epoch_indices
        full, rest = divmod(num_samples, batch_size)
        counts = not drop_last and rest >= max(2, smallest_part * world_size * accumulation)
        self.steps_per_epoch = full + counts
        self._check_length()

    def resume_at(self, epoch: int, step: int) -> Self:
        """The same order from an epoch and a step within it on; ValueError if outside the run."""
        order = copy.copy(self)
        order.start = (epoch, step)
        order._check_length()
        return order

    def _check_length(self) -> None:
        if self.steps_per_epoch == 0:
            raise _no_batch(self)
        epoch, step = self.start
        inside = 0 <= epoch < self.epochs and 0 <= step <= self.steps_per_epoch
        if not inside and self.start != (self.epochs, 0):
            run = f"{self.epochs} epochs of {self.steps_per_epoch} steps"
            raise ValueError(f"start (epoch, step) must lie in {run}, got {self.start}")

    def __len__(self) -> int:
        epoch, step = self.start
        return ((self.epochs - epoch) * self.steps_per_epoch - step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first_epoch, first_step = self.start
        for epoch in range(first_epoch, self.epochs):
            steps = range(first_step if epoch == first_epoch else 0, self.steps_per_epoch)
            if not steps:  # stopped after its last one: a sequence that is drawn no longer knows it
                continue
            keys = self._keys(epoch)
            for step in steps:
                batch = keys[step * self.batch_size : (step + 1) * self.batch_size]
                for micro_batch in np.array_split(batch, self.accumulation):
                    shard = np.array_split(micro_batch, self.world_size)[self.rank]
                    yield [SampleKey(*key) for key in shard.tolist()]

    def _keys(self, epoch: int) -> NDArray[np.int64]:
        """Fields of the epoch's keys in order, shape (``num_samples``, 3)."""
        if self.epoch_indices is not None:
            return self._resampled_keys(epoch, self.epoch_indices(epoch))
        positions = rng_for(self.seed, ORDER, epoch).permutation(self.num_samples)
        columns = np.full_like(positions, epoch), np.zeros_like(positions), positions
        return np.stack(columns, axis=1)

    def _resampled_keys(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `_keys`, for positions of ``epoch_indices``."""
        if positions.shape != (self.num_samples,):
            raise ValueError(
                f"the sequence of an epoch must have the shape ({self.num_samples},), got "
                f"{positions.shape}"
            )
        columns = np.full_like(positions, epoch), _repetitions(positions), positions
        return np.stack(columns, axis=1)

    def micro_batch_weights(self, step: int) -> tuple[float, ...]:
        """Share of the images of a step within its epoch in each micro-batch, on all ranks together.

        Examples:
            >>> ResumableBatchSampler(13, 8, seed=0, epochs=1, accumulation=4).micro_batch_weights(1)
            (0.4, 0.2, 0.2, 0.2)
        """
        images = min(self.batch_size, self.num_samples - step * self.batch_size)
        each, rest = divmod(images, self.accumulation)
        return tuple((each + (part < rest)) / images for part in range(self.accumulation))


def _no_batch(order: ResumableBatchSampler) -> ValueError:
    return ValueError(
        f"{order.num_samples} images do not fill one batch of train.batch_size {order.batch_size} "
        f"on {order.world_size} processes; lower train.batch_size or add images"
    )


def _small_batch(batch_size: int, world_size: int, accumulation: int) -> ValueError:
    return ValueError(
        f"train.batch_size {batch_size} gives {world_size} processes x {accumulation} parts fewer "
        f"than 2 images each; set it to at least {2 * world_size * accumulation}"
    )


def _repetitions(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry stood in the array before, shape (N,)."""
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    starts = np.searchsorted(ordered, ordered)
    before = np.empty_like(order)
    before[order] = np.arange(len(order)) - starts
    return before
