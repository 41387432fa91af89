"""A run: its objects, its directory, and where it resumes."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from sslgh.data import ImageSet, PretrainBatch, ResumableBatchSampler, SupervisedBatch
from sslgh.data.run_images import IMAGES, image_fingerprint, record_text
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.checkpoint import (
    CheckpointError,
    Progress,
    RunEnvironment,
    load_checkpoint,
    read_progress,
)
from sslgh.engine.checkpoint_manager import clean_up, last_whole_checkpoint, list_checkpoints
from sslgh.engine.fsdp import prepare_for_fsdp
from sslgh.engine.launch import (
    check_num_processes,
    describe_processes,
    launch_environment,
    refuse_small_maps,
    run_on_main,
)
from sslgh.engine.logger import METRICS
from sslgh.engine.run_dir import check_directory, open_directory, read_status, write_text
from sslgh.recipe import Recipe, RecipeError


@dataclass
class Run:
    """The objects of a run.

    Attributes:
        recipe: The experiment.
        accelerator: Device and ranks.
        images: Training set.
        module: The module that is trained.
        model: The module wrapped by Accelerate (DDP or FSDP).
        optimizer: Its optimizer, prepared.
        aux_state: State outside ``module`` that belongs to a checkpoint: a harmonizer, an EMA.
        sampler: Batches of this rank from the start of the run.
        lock: File descriptor that keeps other processes out of the directory, on rank 0.
    """

    recipe: Recipe
    accelerator: Accelerator
    images: ImageSet
    module: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    aux_state: nn.Module | None
    sampler: ResumableBatchSampler
    lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.recipe.directory / "checkpoints"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.sampler.steps_per_epoch

    @property
    def environment(self) -> RunEnvironment:
        """What the results depend on apart from the recipe."""
        processes = self.accelerator.num_processes
        return RunEnvironment(processes, torch.get_num_threads(), image_fingerprint(self.images))

    def close(self) -> None:
        """Let other processes use the run directory."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def prepare_run(
    recipe: Recipe,
    accelerator: Accelerator,
    images: ImageSet,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    aux_state: nn.Module | None,
    *,
    epoch_indices: Callable[[int], NDArray[np.int64]] | None = None,
    views: int = 2,
) -> Run:
    """Prepare the objects for the accelerator's device and ranks.

    Args:
        recipe: The experiment.
        accelerator: Device and ranks.
        images: Training set.
        module: Module to train.
        optimizer: Optimizer of its parameters.
        aux_state: State outside ``module`` that belongs to a checkpoint.
        epoch_indices: Positions that an epoch shows, as `class_sampling` gives them; None: each image once.
        views: Views per image; batch statistics need two rows.

    Raises:
        FSDPError: If FSDP is asked for and cannot train the module.
        ValueError: If the batches are impossible.
    """
    if accelerator.is_fsdp2:
        prepare_for_fsdp(module, aux_state)
    if recipe.train.precision == "bf16" and accelerator.device.type == "cpu":
        refuse_small_maps(module)
    # The schedule is not prepared: Accelerate would step it once per process.
    model, optimizer = accelerator.prepare(module, optimizer)
    if aux_state is not None:
        aux_state = aux_state.to(accelerator.device)
    sampler = ResumableBatchSampler(
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
    return Run(recipe, accelerator, images, module, model, optimizer, aux_state, sampler)


def is_done(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether the run directory holds this run, finished. Collective: call it on every rank.

    Raises:
        RecipeError: If it holds another run, or ranks see different directories.
        LaunchError: If another number of processes was asked for.
    """
    directory = recipe.directory
    check_num_processes(accelerator, recipe.train.processes)
    known = check_directory(recipe)
    done = known and read_status(directory).get("state") == "done"
    latest = [path.name for path in list_checkpoints(directory / "checkpoints")[-1:]]
    found = gather_object([(done, latest)])
    if any(state != found[0] for state in found):
        raise RecipeError(
            f"run directory {directory} differs between machines; choose a run_dir that all share"
        )
    if done:
        accelerator.print(f"{directory}: training is done already")
    return done


def open_run(run: Run, notes: Iterable[str], *, device_note: str = "") -> Progress:
    """Make or find the run directory, and load the last whole checkpoint. Collective: call it on every rank.

    Args:
        run: A new run.
        notes: Messages about its images, from `run_images`.
        device_note: Text printed after the processes.

    Returns:
        Where the run stands.

    Raises:
        RecipeError: If ranks list different images, whose positions would then mean different files.
        CheckpointError: If the checkpoint to resume from cannot be used, or is of other images.
    """
    recipe, accelerator = run.recipe, run.accelerator
    fingerprints = gather_object([run.environment.images])
    if any(fingerprint != fingerprints[0] for fingerprint in fingerprints):
        raise RecipeError(
            f"the images of data.root {recipe.data.root} differ between processes; wait until all are copied, or "
            "choose a folder that all machines share"
        )
    processes = describe_processes(accelerator) + device_note
    accelerator.print(f"{recipe.name}: {len(run.images)} images, {processes}")
    for note in notes:
        accelerator.print(note)
    found = run_on_main(lambda: _open_directory(run, processes), accelerator)
    if found is None:
        return Progress()
    progress, environment = read_progress(found)
    _compare_environment(run, environment)
    load_checkpoint(found, module=run.module, aux_state=run.aux_state, optimizer=run.optimizer)
    accelerator.print(
        f"going on from epoch {progress.epoch}, step {progress.global_step} ({found})"
    )
    # More ranks may leave out a small last batch that fewer of them took.
    step = min(progress.step_in_epoch, run.steps_per_epoch)
    global_step = progress.epoch * run.steps_per_epoch + step
    return progress._replace(step_in_epoch=step, global_step=global_step)


def _open_directory(run: Run, processes: str) -> Path | None:
    """Put the directory in order; returns the checkpoint to resume from. Rank 0 only."""
    directory, accelerator = run.recipe.directory, run.accelerator
    run.lock = open_directory(run.recipe, {"world": processes, **launch_environment()})
    if not (directory / IMAGES).exists():
        write_text(directory / IMAGES, record_text(run.images))
    clean_up(run.checkpoints)
    found, messages = last_whole_checkpoint(run.checkpoints)
    for message in messages:
        accelerator.print(message)
    if found is None and (directory / METRICS).exists():
        accelerator.print(f"{run.checkpoints} holds no checkpoint: the run begins from its start")
    return found


def _compare_environment(run: Run, before: RunEnvironment) -> None:
    """Print what keeps the run from resuming to the same bits.

    Raises:
        CheckpointError: If the images differ.
    """
    now = run.environment
    if now.images != before.images:
        raise CheckpointError(
            f"{run.checkpoints} was written on other images than those of data.root {run.recipe.data.root}; restore "
            "them, or choose another run_dir"
        )
    for name in ("processes", "threads"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            run.accelerator.print(
                f"the checkpoint is from {old} {name} and the run goes on with {new}: as good statistically, not the "
                "same to the bit"
            )


def watched_batches(
    run: Run, loader: DataLoader[PretrainBatch | SupervisedBatch], directory: Path | None
) -> BrokenImages:
    """Batches of a loader that tolerate broken images.

    Args:
        run: The run.
        loader: Its loader.
        directory: Folder of ``quarantine.json``; None: none is written.

    Raises:
        DataError: If the report of an earlier start is damaged.
    """
    return BrokenImages(
        iter(loader),
        run.images,
        share=run.recipe.data.broken_share,
        directory=directory,
        device=run.accelerator.device,
    )
