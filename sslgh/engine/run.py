"""A run: its objects, its directory, and where it resumes."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from sslgh.data import ImageSet, ResumableBatchSampler
from sslgh.data.run_images import check_files, other_images
from sslgh.data.run_record import IMAGES, image_fingerprint, record_text
from sslgh.data.sources import describe_images
from sslgh.engine.broken_images import Batch, BrokenImages
from sslgh.engine.build import refuse_small_maps
from sslgh.engine.checkpoint import (
    CheckpointError,
    Progress,
    RunEnvironment,
    load_checkpoint,
    read_progress,
)
from sslgh.engine.checkpoint_manager import clean_up, last_whole_checkpoint, list_checkpoints
from sslgh.engine.fsdp import prepare_for_fsdp
from sslgh.engine.kept_init import keep_init
from sslgh.engine.launch import (
    check_num_processes,
    describe_processes,
    launch_environment,
    run_on_main,
)
from sslgh.engine.optim import build_optimizer
from sslgh.engine.run_dir import (
    METRICS,
    OtherRunError,
    check_directory,
    open_directory,
    read_status,
    write_text,
)
from sslgh.recipe import Recipe, RecipeError


class Run:
    """The objects of a run, prepared for the accelerator's device and ranks.

    Args:
        recipe: The experiment.
        accelerator: Device and ranks.
        images: Training set.
        module: Module to train.
        aux_state: State outside ``module`` that belongs to a checkpoint: a harmonizer, an EMA.
        epoch_indices: Positions that an epoch shows, as `class_sampling` gives them; None: each image once.
        views: Views per image; batch statistics need two rows.

    Attributes:
        model: The module wrapped by Accelerate (DDP or FSDP).
        optimizer: Optimizer of its parameters.
        sampler: Batches of this rank from the start of the run.
        lock: File descriptor that keeps other processes out of the directory, on rank 0.

    Raises:
        FSDPError: If FSDP is asked for and cannot train the module.
        ValueError: If the batches are impossible.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        images: ImageSet,
        module: nn.Module,
        aux_state: nn.Module | None,
        *,
        epoch_indices: Callable[[int], NDArray[np.int64]] | None = None,
        views: int = 2,
    ) -> None:
        if accelerator.is_fsdp2:
            prepare_for_fsdp(module, aux_state)
        if recipe.train.precision == "bf16" and accelerator.device.type == "cpu":
            refuse_small_maps(module)
        self.recipe, self.accelerator, self.images = recipe, accelerator, images
        self.module = module
        self.lock: int | None = None
        optimizer = build_optimizer(module, recipe.optim)
        # The schedule is not prepared: Accelerate would step it once per process.
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        self.aux_state = None if aux_state is None else aux_state.to(accelerator.device)
        self.sampler = ResumableBatchSampler(
            len(images),
            recipe.train.batch_size,
            seed=recipe.seed,
            epochs=recipe.train.epochs,
            drop_last=recipe.train.drop_last,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=recipe.train.accumulation,
            epoch_indices=epoch_indices,
            smallest_part=1 if views > 1 else 2,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.checkpoints = recipe.directory / "checkpoints"
        self.environment = RunEnvironment(
            accelerator.num_processes,
            torch.get_num_threads(),
            image_fingerprint(images),
            recipe.train.precision,
        )

    def watched(self, loader: DataLoader[Batch], directory: Path | None) -> BrokenImages:
        """Batches of a loader that tolerate broken images, reported in ``directory``."""
        share, device, it = self.recipe.data.broken_share, self.accelerator.device, iter(loader)
        return BrokenImages(it, self.images, share=share, directory=directory, device=device)

    def close(self) -> None:
        """Let other processes use the run directory."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def is_done(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether the run directory holds this run, finished. Collective: call it on every rank.

    Raises:
        RecipeError: If it holds another run, or ranks see different directories.
        LaunchError: If another number of processes was asked for.
    """
    directory = recipe.directory
    check_num_processes(accelerator, recipe.train.processes)
    if begun := check_directory(recipe):
        _check_images(recipe)
    done = begun and read_status(directory).get("state") == "done"
    latest = [path.name for path in list_checkpoints(directory / "checkpoints")[-1:]]
    found = gather_object([(done, latest)])
    if found.count(found[0]) < len(found):
        raise RecipeError(
            f"run directory {directory} differs between machines; choose a run_dir that all share"
        )
    if done:
        accelerator.print(f"{directory}: training is done already")
    return done


def _check_images(recipe: Recipe) -> None:
    """Raise OtherRunError if the data of a recipe are not the images that its run began with."""
    if (reason := other_images(recipe.directory, recipe.data)) is not None:
        raise OtherRunError(
            f"run directory {recipe.directory} holds a run on other images: {reason}; choose another run_dir, or set "
            "data.root to where they are"
        )


def open_run(run: Run, *, device_note: str = "") -> Progress:
    """Make or find the run directory, and resume its last whole checkpoint. Collective: call it on every rank.

    Raises:
        RecipeError: If ranks list different images, whose positions would then mean different files.
        CheckpointError: If the checkpoint cannot be used, or is of other images.
    """
    recipe, accelerator = run.recipe, run.accelerator
    fingerprints = gather_object([run.environment.images])
    if any(fingerprint != fingerprints[0] for fingerprint in fingerprints):
        raise RecipeError(
            f"the images of data.root {recipe.data.root} differ between processes; wait until all are copied, or "
            "choose a folder that all machines share"
        )
    processes = describe_processes(accelerator) + device_note
    images = describe_images(run.images, recipe.data)
    accelerator.print(f"{recipe.name}: {images}, {processes}")
    checkpoint = run_on_main(partial(_open_directory, run, processes), accelerator)
    return Progress() if checkpoint is None else _resume(run, checkpoint)


def _open_directory(run: Run, processes: str) -> Path | None:
    """Put the directory in order; returns the checkpoint to resume from. Rank 0 only."""
    directory, precision = run.recipe.directory, run.recipe.train.precision
    run.lock = open_directory(
        run.recipe, {"world": processes, "precision": precision, **launch_environment()}
    )
    if read_status(directory).get("state") == "running":  # and its lock was free
        run.accelerator.print(f"{directory}: the process before this one was killed")
    if run.recipe.model.init is not None:
        keep_init(run.recipe)
    if not (directory / IMAGES).exists():
        write_text(directory / IMAGES, record_text(run.images))
    found = _last_checkpoint(run) if any(run.checkpoints.iterdir()) else None
    if found is not None:
        check_files(run.images, run.recipe.data.root)
    elif (directory / METRICS).exists():
        run.accelerator.print(
            f"{run.checkpoints} holds no checkpoint: the run starts from the beginning"
        )
    return found


def _last_checkpoint(run: Run) -> Path | None:
    """Clean up the checkpoints and print which are damaged; returns the last whole one."""
    clean_up(run.checkpoints)
    found, messages = last_whole_checkpoint(run.checkpoints)
    for message in messages:
        run.accelerator.print(message)
    return found


def _resume(run: Run, checkpoint: Path) -> Progress:
    """Load a checkpoint; print what keeps the run from continuing to the same bits.

    Raises:
        CheckpointError: If it cannot be used, or is of other images.
    """
    progress, before = read_progress(checkpoint)
    if before.images != run.environment.images:
        raise CheckpointError(
            f"{run.checkpoints} was written on other images than those of data.root {run.recipe.data.root}; restore "
            "them, or choose another run_dir"
        )
    for name in ("processes", "threads"):
        old, new = getattr(before, name), getattr(run.environment, name)
        if old != new:
            run.accelerator.print(
                f"the checkpoint is from {old} {name} and the run resumes with {new}: statistically equivalent, not the "
                "same to the bit"
            )
    if before.precision not in (None, run.environment.precision):
        raise CheckpointError(
            f"{checkpoint} is of a run in {before.precision}; set train.precision: {before.precision}, or choose "
            "another run_dir"
        )
    load_checkpoint(checkpoint, module=run.module, aux_state=run.aux_state, optimizer=run.optimizer)
    run.accelerator.print(
        f"resuming from epoch {progress.epoch}, step {progress.global_step} ({checkpoint})"
    )
    # More ranks may leave out a small last batch that fewer of them took.
    step = min(progress.step_in_epoch, run.steps_per_epoch)
    global_step = progress.epoch * run.steps_per_epoch + step
    return progress._replace(step_in_epoch=step, global_step=global_step)
