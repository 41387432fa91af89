"""The loaders that feed a training run, and the life of their workers."""

import atexit
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sslgh.data.batch_sampler import ResumableBatchSampler
from sslgh.data.datasets import PretrainDataset, SupervisedDataset
from sslgh.data.image_set import ImageSet
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.data import Data
from sslgh.recipe.finetune import Policy

logger = logging.getLogger(__name__)

AnyDataset = PretrainDataset | SupervisedDataset
MAX_WORKERS = 8
PREFETCH = 2
# SLURM announces the end of a job by the signal of its --signal option, SIGUSR1 by convention; Windows has none.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
SHARED_MEMORY = Path("/dev/shm")


def view_loader(
    images: ImageSet, data: Data, *, size: int, seed: int, order: ResumableBatchSampler
) -> DataLoader[Any]:
    """Each `PretrainBatch` of this rank, with S = ``size`` pixels; not to be prepared by Accelerate.

    One pass goes over the whole rest of the run, with the same workers throughout, whose number changes
    nothing in it. Iterating raises a DataError if hardly any image can be read.
    """
    dataset = PretrainDataset(images, data.augment, size=size, seed=seed)
    pixels = 2 * size**2 + data.augment.local_crops * dataset.local_size**2
    return _loader(dataset, data, order, pixels=pixels)


def labeled_loader(
    images: ImageSet,
    data: Data,
    *,
    size: int,
    seed: int,
    order: ResumableBatchSampler,
    policy: Policy = "crop-flip",
    contrast: bool = False,
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - immutable
) -> DataLoader[Any]:
    """Each `SupervisedBatch` of this rank, in the way of ``view_loader``.

    Args:
        images: The training set, with labels.
        data: Augmentation of the crops and number of workers.
        size: S (pixels).
        seed: Random seed of the run.
        order: Batches of this rank.
        policy: Augmentation of the view.
        contrast: Whether the crops are wanted.
        preprocessing: How evaluation resizes and cuts.

    Raises:
        ValueError: If the images have no labels.
        DataError: While iterating, if hardly any image can be read, from workers too.
    """
    dataset = SupervisedDataset(
        images,
        data.augment,
        size=size,
        seed=seed,
        policy=policy,
        contrast=contrast,
        preprocessing=preprocessing,
    )
    return _loader(dataset, data, order, pixels=(3 if contrast else 1) * size**2)


def _loader(
    dataset: AnyDataset, data: Data, order: ResumableBatchSampler, *, pixels: int
) -> DataLoader[Any]:
    """Loader of a dataset whose samples hold ``pixels`` RGB pixels."""
    batch_bytes = order.batch_size / order.world_size / order.accumulation * 3 * pixels
    workers = num_workers(data, in_memory=dataset.images.in_memory, batch_bytes=batch_bytes)
    if order.epoch_indices is not None:
        # A sequence may be known for this epoch and the next only: fetch less than an epoch ahead.
        workers = min(workers, order.steps_per_epoch * order.accumulation // PREFETCH)
    if workers:
        end_workers_at_exit()
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: the default one would be moved on, and a resumed run would differ.
        generator=torch.Generator().manual_seed(dataset.seed),
        worker_init_fn=leave_signals_to_the_run,
    )


def leave_signals_to_the_run(_: int) -> None:
    """Ctrl-C and a batch system signal every process; a dead worker would cost the run its save."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers(batches: Iterator[Any]) -> None:
    """Stop the workers of a loader's iterator, for a loop that is left before its end.

    After a worker's error the garbage collector would close their queues before the iterator stops them.
    """
    if hasattr(batches, "_shutdown_workers"):  # none without workers
        batches._shutdown_workers()


def end_workers_at_exit() -> None:
    """Call it for a loader whose workers `leave_signals_to_the_run`."""
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)


def _end_workers() -> None:
    """What multiprocessing does at exit, for workers that ignore its SIGTERM: it would wait for them.

    They are left when an iterator outlives its loop, as in the traceback that a notebook keeps.
    """
    if hasattr(signal, "SIGCHLD"):  # torch's handler would report them as crashed
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def num_workers(data: Data, *, in_memory: bool, batch_bytes: float | None = None) -> int:
    """Number of loader workers of this process: ``data.workers``, or none for images in memory, or `free_workers`."""
    if data.workers is not None:
        return data.workers
    return 0 if in_memory else free_workers(batch_bytes)


def free_workers(batch_bytes: float | None) -> int:
    """One worker per available core of this process's share of the machine.

    At most 8, and as far as shared memory holds their batches of ``batch_bytes``.
    """
    share = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = min(MAX_WORKERS, max(1, share))
    if batch_bytes is None or not SHARED_MEMORY.is_dir():
        return workers
    # Containers often get 64 MB; a worker that runs out of it dies with a bus error.
    fitting = int(shutil.disk_usage(SHARED_MEMORY).free / 2 // (batch_bytes * PREFETCH))
    if fitting < workers:
        logger.warning(
            "%s has room for the batches of %d loader workers instead of %d: enlarge it, or set "
            "data.workers",
            SHARED_MEMORY,
            fitting,
            workers,
        )
    return min(workers, fitting)


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
