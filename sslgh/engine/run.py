"""A run: its objects, its directory, and where it goes on."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from sslgh.data import ImageSet, ResumableBatchSampler
from sslgh.data.run_images import IMAGES, image_fingerprint, record_text
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.checkpoint import (
    CheckpointError,
    Progress,
    RunEnvironment,
    load_checkpoint,
    read_progress,
)
from sslgh.engine.checkpoint_manager import last_whole_checkpoint, list_checkpoints, tidy
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

Sequence = Callable[[int], NDArray[np.int64]]


@dataclass
class Run:
    """The objects of a run.

    Attributes:
        module: The bare module that is trained.
        model: What Accelerate made of it.
        aux_state: State beside the module that belongs to a checkpoint: a harmonizer, a moving average.
        lock: What keeps other processes out of the directory, on process 0, until `releasing_lock`.
    """

    recipe: Recipe
    accelerator: Accelerator
    images: ImageSet
    module: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    aux_state: nn.Module | None
    lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.recipe.directory / "checkpoints"

    @property
    def setting(self) -> RunEnvironment:
        """What the numbers depend on beside the recipe."""
        processes = self.accelerator.num_processes
        return RunEnvironment(processes, torch.get_num_threads(), image_fingerprint(self.images))


def make_run(
    recipe: Recipe,
    accelerator: Accelerator,
    images: ImageSet,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    aux_state: nn.Module | None,
) -> Run:
    """Prepare the objects for the accelerator's device and processes.

    Raises:
        FSDPError: If FSDP is asked for and cannot train the module.
    """
    if accelerator.is_fsdp2:
        prepare_for_fsdp(module, aux_state)
    if recipe.train.precision == "bf16" and accelerator.device.type == "cpu":
        refuse_small_maps(module)
    # The schedule is not prepared: Accelerate would step it once a process.
    model, optimizer = accelerator.prepare(module, optimizer)
    if aux_state is not None:
        aux_state = aux_state.to(accelerator.device)
    return Run(recipe, accelerator, images, module, model, optimizer, aux_state)


@contextmanager
def releasing_lock(run: Run) -> Iterator[None]:
    """Let other processes into the run directory when this block is left."""
    try:
        yield
    finally:
        if run.lock is not None:
            os.close(run.lock)
            run.lock = None


def is_done(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether the run directory holds this run, finished. Collective: call it on every rank.

    Raises:
        RecipeError: If it holds another run, or processes see different directories.
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


def open_run(run: Run, said: Iterable[str], *, note: str = "") -> Progress:
    """Make or find the run directory, and restore the last whole checkpoint. Collective: call it on every rank.

    Args:
        run: Fresh from `make_run`.
        said: Of its images, by `run_images`.
        note: Said after the processes.

    Returns:
        Where the run stands.

    Raises:
        ValueError: If the batches are impossible.
        CheckpointError: If the checkpoint to go on from cannot be used, or is of other images.
    """
    recipe, accelerator = run.recipe, run.accelerator
    batch_sampler(run, Progress())  # refuses an impossible batch before anything is written
    _check_images(run)
    world = describe_processes(accelerator) + note
    accelerator.print(f"{recipe.name}: {len(run.images)} images, {world}")
    for sentence in said:
        accelerator.print(sentence)
    found = run_on_main(lambda: _find(run, world), accelerator)
    if found is None:
        return Progress()
    progress, setting = read_progress(found)
    _check_setting(run, setting)
    load_checkpoint(found, module=run.module, aux_state=run.aux_state, optimizer=run.optimizer)
    accelerator.print(
        f"going on from epoch {progress.epoch}, step {progress.global_step} ({found})"
    )
    return progress


def _check_images(run: Run) -> None:
    """Collective: call it on every rank.

    Raises:
        RecipeError: If processes list other images, whose positions would then mean other files.
    """
    found = gather_object([run.setting.images])
    if any(images != found[0] for images in found):
        raise RecipeError(
            f"the images of data.root {run.recipe.data.root} differ between processes; wait until all are copied, or "
            "choose a folder that all machines share"
        )


def _find(run: Run, world: str) -> Path | None:
    """The checkpoint to go on from, after the directory is in order; process 0 only."""
    run.lock = open_directory(run.recipe, {"world": world, **launch_environment()})
    if not (run.recipe.directory / IMAGES).exists():
        write_text(run.recipe.directory / IMAGES, record_text(run.images))
    tidy(run.checkpoints)
    found, said = last_whole_checkpoint(run.checkpoints)
    for sentence in said:
        run.accelerator.print(sentence)
    if found is None and (run.recipe.directory / METRICS).exists():
        run.accelerator.print(
            f"{run.checkpoints} holds no checkpoint: the run begins from its start"
        )
    return found


def _check_setting(run: Run, before: RunEnvironment) -> None:
    """Say what keeps the run from going on to the same bits.

    Raises:
        CheckpointError: If the images are others.
    """
    now = run.setting
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


def batch_sampler(
    run: Run, progress: Progress, epoch_indices: Sequence | None = None, *, views: int = 2
) -> ResumableBatchSampler:
    """This process's batches from ``progress`` on.

    Args:
        run: Its recipe and processes.
        progress: Where to begin.
        epoch_indices: Positions of an epoch, as `class_sampling` gives them; None: each image once.
        views: Of an image; batch statistics need two rows.
    """
    train = run.recipe.train
    order = ResumableBatchSampler(
        len(run.images),
        train.batch_size,
        seed=run.recipe.seed,
        epochs=train.epochs,
        drop_last=train.drop_last,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        accumulation=train.accumulation,
        epoch_indices=epoch_indices,
        smallest_part=1 if views > 1 else 2,
    )
    at = within(progress, order.steps_per_epoch)
    return order.starting(at.epoch, at.step_in_epoch)


def within(progress: Progress, steps_per_epoch: int) -> Progress:
    """The same place in epochs of so many steps.

    More processes may leave out a small last batch that fewer of them took.

    Examples:
        >>> within(Progress(epoch=1, step_in_epoch=3, global_step=7), 3)
        Progress(epoch=1, step_in_epoch=3, global_step=6, skipped_in_a_row=0)
    """
    step = min(progress.step_in_epoch, steps_per_epoch)
    total = progress.epoch * steps_per_epoch + step
    return progress._replace(step_in_epoch=step, global_step=total)


def watch_broken_images(batches: Iterator[Any], run: Run, directory: Path | None) -> BrokenImages:
    """A loader's batches, watched for images that cannot be read.

    Args:
        batches: Of the loader.
        run: Whose images they are.
        directory: Where those that cannot be read are reported; None: nowhere.

    Raises:
        DataError: If the report of before is damaged.
    """
    return BrokenImages(
        batches,
        run.images,
        share=run.recipe.data.broken_share,
        directory=directory,
        device=run.accelerator.device,
    )
