"""Room: in shared memory, on the disk; and how fast images come."""

import os
import shutil
import time
from pathlib import Path

from sslgh.data import ImageSet, PretrainDataset, SampleKey
from sslgh.doctor.check_result import CheckResult
from sslgh.engine.memory import gigabytes
from sslgh.recipe import Recipe

SMALL_SHARED_MEMORY = 10**9
TIMED_SECONDS = 2.0
# Metrics, TensorBoard, the backbone and the file system's own share, as a factor of the checkpoints.
OVERHEAD = 1.1


def shared_memory(free: int, *, workers: int, batch_bytes: int) -> CheckResult:
    """Whether the batches of the loader's workers fit into /dev/shm.

    Args:
        free: Bytes there.
        workers: Loader processes on this machine.
        batch_bytes: Bytes of the batches that one worker keeps ready.
    """
    need = 2 * workers * batch_bytes  # half stays free, for other runs
    found = f"{gigabytes(free)} free in /dev/shm"
    if need > free:
        fitting = free // (2 * batch_bytes)
        return CheckResult(
            "FAIL",
            "shared memory",
            f"{found}, {workers} loader workers need {gigabytes(need)}",
            f"start the container with --shm-size={-(-need // 10**9)}g, or set data.workers: {fitting}",
        )
    if free < SMALL_SHARED_MEMORY:
        return CheckResult(
            "warn", "shared memory", found, "start the container with --shm-size=8g or --ipc=host"
        )
    return CheckResult("ok", "shared memory", found)


def disk(free: int, *, checkpoint: int, kept: int) -> CheckResult:
    """Whether the run directory has room for a run.

    Args:
        free: Bytes of its disk.
        checkpoint: Bytes of one checkpoint.
        kept: How many there are at once, the one being written included.
    """
    need = int(checkpoint * kept * OVERHEAD)
    found = f"{gigabytes(free)} free, the run needs {gigabytes(need)}"
    if need > free:
        remedy = "choose another run_dir, lower train.keep_last, or move old runs elsewhere"
        return CheckResult("FAIL", "disk", found, remedy)
    if 2 * need > free:
        return CheckResult("warn", "disk", found, "make room before other runs begin")
    return CheckResult("ok", "disk", f"{found} ({kept} checkpoints of {gigabytes(checkpoint)})")


def kept_checkpoints(recipe: Recipe) -> int:
    """Checkpoints of a run that lie there at once: the last ones, those for good, the one being written."""
    train = recipe.train
    for_good = 0 if train.keep_every is None else train.epochs // train.keep_every
    return train.keep_last + for_good + 1


def folder(directory: Path) -> CheckResult:
    """Whether the run directory can be made and written to; it is not made."""
    place = nearest_existing(directory)
    if not place.is_dir():
        return CheckResult(
            "FAIL", "run directory", f"{place} is not a folder", "choose another run_dir"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        return CheckResult(
            "FAIL",
            "run directory",
            f"{place} is not writable",
            "choose another run_dir, or change its permissions",
        )
    made = "is there" if place == directory.absolute() else f"can be made in {place}"
    return CheckResult("ok", "run directory", f"{directory} {made}")


def nearest_existing(directory: Path) -> Path:
    """The directory, or the nearest above it that exists."""
    whole = directory.absolute()
    return next(place for place in (whole, *whole.parents) if os.path.lexists(place))


def free_disk(directory: Path) -> int:
    """Bytes free where a run directory is, or will be."""
    return shutil.disk_usage(nearest_existing(directory)).free


def images_per_second(
    images: ImageSet, recipe: Recipe, *, size: int, seconds: float = TIMED_SECONDS
) -> float:
    """Images that one worker reads and crops in a second.

    Raises:
        DataError: If images cannot be read.
    """
    views = PretrainDataset(images, recipe.data.augment, size=size, seed=recipe.seed)
    began, shown = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds or not shown:
        views[SampleKey(0, 0, (shown * 7919) % len(images))]  # all over the disk, as in training
        shown += 1
    return shown / passed


def loader_speed(rate: float, *, workers: int, cores: int) -> CheckResult:
    """Speed of the loader.

    Args:
        rate: Images a second of one worker.
        workers: As set or chosen.
        cores: Cores that this process may use.
    """
    found = f"{rate:,.0f} images per second from one worker, {workers} asked for"
    if workers > cores:
        remedy = f"more workers than the {cores} cores; set data.workers: {cores}"
        return CheckResult("warn", "loader", found, remedy)
    return CheckResult("ok", "loader", found)
