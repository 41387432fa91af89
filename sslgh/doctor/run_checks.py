"""The checks of the doctor that need torch, in order."""

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from sslgh.data import DataError, ImageSet, input_size, local_side, num_workers, training_set
from sslgh.data.loader import PREFETCH, SHARED_MEMORY, available_cores
from sslgh.doctor.check_result import CheckResult
from sslgh.doctor.machine import (
    TAKES,
    cpu_precision,
    faiss_against_device,
    gpu_precision,
    torch_against_device,
    world,
)
from sslgh.doctor.memory_estimate import checkpoint_bytes
from sslgh.doctor.software import FAISS, installed
from sslgh.doctor.storage import (
    disk,
    folder,
    free_disk,
    images_per_second,
    kept_checkpoints,
    loader_speed,
    shared_memory,
)
from sslgh.doctor.training_time import build_stage, seconds_per_image
from sslgh.engine.launch import has_accelerator
from sslgh.engine.logger import duration
from sslgh.engine.memory import check_memory, free_bytes, gigabytes
from sslgh.engine.precision import has_amx
from sslgh.recipe import Recipe, make_recipe

TRIAL = {"name": "trial", "data": {"source": "digits"}, "method": {"name": "simclr"}}


def run_checks(recipe: Recipe | None = None, run_dir: Path | None = None) -> Iterator[CheckResult]:
    """What is found on this machine, one check after the other.

    Args:
        recipe: Recipe of the run to check; None: check the machine only.
        run_dir: Folder that runs are written to; None: the recipe's, or ``runs``.

    Yields:
        Findings, as they come.
    """
    yield world(os.environ, threads=torch.get_num_threads(), cores=available_cores())
    yield from _devices("fp32" if recipe is None else recipe.train.precision)
    directory = run_dir or (Path("runs") if recipe is None else recipe.directory)
    yield folder(directory)
    yield from _data(recipe or make_recipe(TRIAL), directory, known=recipe is not None)


def _devices(precision: str) -> Iterator[CheckResult]:
    capability = None
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        yield gpu_precision(torch.cuda.get_device_name(), capability, precision)
        yield torch_against_device(torch.cuda.get_arch_list(), capability)
    elif has_accelerator():
        yield CheckResult("ok", "precision", f"MPS device, {TAKES.format('fp32')}")
    else:
        yield cpu_precision(has_amx(), precision)
    try:
        faiss = importlib.import_module("faiss")
    except (ImportError, RuntimeError):  # reported by the check of packages
        return
    package = next(iter(installed(FAISS)), "FAISS from elsewhere")
    options = faiss.get_compile_options()
    yield faiss_against_device(options, capability, package, faiss.get_num_gpus())


def _data(recipe: Recipe, directory: Path, *, known: bool) -> Iterator[CheckResult]:
    """What depends on the recipe's images; without a recipe the digits of scikit-learn stand in."""
    try:
        images = training_set(recipe.data, labeled=recipe.asks_for_labels)
        size = input_size(recipe.data, images)
        rate = images_per_second(images, recipe, size=size)
    except DataError as error:
        yield CheckResult("FAIL", "images", str(error), "sslgh scan FOLDER lists what is broken")
        return
    # Without a recipe the digits stand for files.
    workers = num_workers(recipe.data, in_memory=known and images.in_memory)
    yield loader_speed(rate, workers=workers, cores=available_cores())
    yield from _shared(recipe, size, workers)
    if known:
        yield from _room(recipe, images, size, directory)
    else:
        yield CheckResult(
            "ok", "disk", f"{gigabytes(free_disk(directory))} free; give a recipe for more"
        )


def _shared(recipe: Recipe, size: int, workers: int) -> Iterator[CheckResult]:
    if not SHARED_MEMORY.is_dir():
        return
    augment = recipe.data.augment
    pixels = 2 * size**2 + augment.local_crops * local_side(augment, size) ** 2
    images = recipe.train.batch_size // recipe.train.accumulation  # of one rank, if it trains alone
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = shared_memory(free, workers=workers, batch_bytes=PREFETCH * images * 3 * pixels)
    if (
        found.state == "FAIL" and recipe.data.workers is None
    ):  # the loader then takes as many as fit
        found = found._replace(state="warn")
    yield found


def _room(recipe: Recipe, images: ImageSet, size: int, directory: Path) -> Iterator[CheckResult]:
    yield from _training(recipe, images)
    classes = max(len(images.class_names or ()), 2)
    checkpoint = checkpoint_bytes(
        recipe, image_size=size, num_images=len(images), num_classes=classes
    )
    if checkpoint is not None:
        kept = kept_checkpoints(recipe)
        yield disk(free_disk(directory), checkpoint=checkpoint, kept=kept)


def _training(recipe: Recipe, images: ImageSet) -> Iterator[CheckResult]:
    """Memory and time of training, from a run that is built and takes a few steps."""
    try:
        stage = build_stage(recipe, images)
        need = check_memory(stage, stage.image_size)
    except ValueError as error:
        yield CheckResult("FAIL", "memory", str(error))
        return
    processes = stage.run.accelerator.num_processes
    free = free_bytes(stage.run.accelerator.device)
    amount = "an unknown amount with FSDP" if need is None else f"about {gigabytes(need.total)}"
    found = f"{gigabytes(free)} free, the run needs {amount}"
    yield CheckResult("ok", "memory", found)
    del stage
    if processes == 1:  # else ranks would time different batches
        try:
            seconds = seconds_per_image(recipe, images) * len(images)
        except ValueError as error:
            yield CheckResult("FAIL", "time", str(error))
            return
        length = duration(seconds * recipe.train.epochs)
        yield CheckResult("ok", "time", f"{recipe.train.epochs} epochs: about {length} here")
