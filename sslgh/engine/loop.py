"""The training loop: epochs, steps, checkpoints and signals, whatever is trained."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.data import BatchOrder, ImageSet, end_workers
from sslgh.distributed import any_process
from sslgh.engine.checkpoint import Progress, list_checkpoints, load_checkpoint, save_checkpoint
from sslgh.engine.journal import Journal
from sslgh.engine.optimiser import set_learning_rate
from sslgh.engine.run_directory import check_directory, open_directory, read_status, write_status
from sslgh.engine.schedule import learning_rate
from sslgh.engine.sharding import make_shardable, make_whole, own_part, whole
from sslgh.engine.signals import Stopped, StopRequest
from sslgh.engine.world import check_world, describe_world, world_environment
from sslgh.recipe import Recipe, RecipeError

Batch = tuple[Tensor, ...]
Sequence = Callable[[int], NDArray[np.int64]]
Values = dict[str, Tensor]


class NotFiniteError(RuntimeError):
    """The loss became nan or infinite; the last checkpoint is from before."""


@dataclass
class Run:
    """The objects of a run.

    Attributes:
        module: The bare module that is trained.
        model: What Accelerate made of it.
        memory: State beside the module that belongs to a checkpoint: a harmonizer, a moving average.
        finite: Whether all losses so far were, shape (), bool.
    """

    recipe: Recipe
    accelerator: Accelerator
    images: ImageSet
    module: nn.Module
    model: nn.Module
    optimiser: torch.optim.Optimizer
    memory: nn.Module | None
    finite: Tensor

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.recipe.directory / "checkpoints"


class Moment(NamedTuple):
    """A step of the run, as a task sees it.

    Attributes:
        epoch: From 0.
        total: Optimiser steps of the run, this one included.
        done: Share of the run's steps, this one included, in (0, 1].
        logged: Whether the numbers of this step are written down.
    """

    epoch: int
    total: int
    done: float
    logged: bool


@dataclass(frozen=True)
class Task:
    """What a kind of training does at each turn of the loop.

    Attributes:
        part: Forward of one part of a batch; its numbers, ``loss`` among them.
        begin_epoch: Called with epoch, step and journal before the first step of an epoch, and
            again when a run is resumed within it.
        after_step: Called after the optimiser's step.
        end_epoch: Called with epoch, step and journal before the checkpoint of an epoch.
        watch: Looks at the numbers that are written down; a sentence to say, or None.
    """

    part: Callable[[Batch, Moment], Values]
    begin_epoch: Callable[[int, int, Journal], None] | None = None
    after_step: Callable[[Moment], None] | None = None
    end_epoch: Callable[[int, int, Journal], None] | None = None
    watch: Callable[[dict[str, float]], str | None] | None = None


def make_run(
    recipe: Recipe,
    accelerator: Accelerator,
    images: ImageSet,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    memory: nn.Module | None,
) -> Run:
    """Prepare the objects for the accelerator's device and processes.

    Raises:
        ShardingError: If FSDP is asked for and cannot train the module.
    """
    if accelerator.is_fsdp2:
        make_shardable(module, memory)
    # The schedule is not prepared: Accelerate would step it once a process.
    model, optimiser = accelerator.prepare(module, optimiser)
    if memory is not None:
        memory = memory.to(accelerator.device)
    finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
    return Run(recipe, accelerator, images, module, model, optimiser, memory, finite)


def is_done(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether the run directory holds this run, finished; a collective.

    Raises:
        RecipeError: If it holds another run, or processes see different directories.
        WorldError: If another number of processes was asked for.
    """
    directory = recipe.directory
    check_world(accelerator, recipe.train.processes)
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


def open_run(run: Run, *, note: str = "") -> Progress:
    """Make or find the run directory, and restore the last checkpoint; a collective.

    Args:
        run: Fresh from `make_run`.
        note: Said after the processes.

    Returns:
        Where the run stands.

    Raises:
        ValueError: If the batches are impossible.
        CheckpointError: If the checkpoint to go on from cannot be used.
    """
    recipe, accelerator = run.recipe, run.accelerator
    batch_order(run, Progress())  # refuses an impossible batch before anything is written
    world = describe_world(accelerator) + note
    accelerator.print(f"{recipe.name}: {len(run.images)} images, {world}")
    if accelerator.is_main_process:
        open_directory(recipe, {"world": world, **world_environment()})
    accelerator.wait_for_everyone()
    found = list_checkpoints(run.checkpoints)
    if not found:
        return Progress()
    progress = load_checkpoint(
        found[-1], module=run.module, memory=run.memory, optimiser=run.optimiser
    )
    accelerator.print(f"going on from epoch {progress.epoch}, step {progress.total} ({found[-1]})")
    return progress


def batch_order(
    run: Run, progress: Progress, sequence: Sequence | None = None, *, views: int = 2
) -> BatchOrder:
    """This process's batches from ``progress`` on.

    Args:
        run: Its recipe and processes.
        progress: Where to begin.
        sequence: Positions of an epoch, as `class_sampling` gives them; None: each image once.
        views: Of an image; batch statistics need two rows.
    """
    train = run.recipe.train
    return BatchOrder(
        len(run.images),
        train.batch_size,
        seed=run.recipe.seed,
        epochs=train.epochs,
        start=(progress.epoch, progress.step),
        drop_last=train.drop_last,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
        accumulation=train.accumulation,
        sequence=sequence,
        smallest_part=1 if views > 1 else 2,
    )


def train(
    run: Run, task: Task, batches: Iterator[Batch], progress: Progress, steps_per_epoch: int
) -> None:
    """All epochs from ``progress`` on; the module ends with whole weights on every process.

    Raises:
        NotFiniteError: If the loss is nan or infinite.
        Stopped: After saving, if SIGTERM or SIGINT came.
    """
    recipe, main = run.recipe, run.accelerator.is_main_process
    journal = Journal(
        recipe.directory,
        active=main,
        steps=recipe.train.epochs * steps_per_epoch,
        start=progress.total,
        images_per_step=recipe.train.batch_size,
    )
    with journal, StopRequest() as stop, _ended(batches):
        for epoch in range(progress.epoch, recipe.train.epochs):
            if main:
                write_status(recipe.directory, "running", epoch=epoch, step=progress.total)
            if task.begin_epoch is not None:
                task.begin_epoch(epoch, progress.total, journal)
            run.model.train()
            for step in range(progress.step, steps_per_epoch):
                rate = _learning_rate(run, progress.total, steps_per_epoch)
                moment = _moment(recipe, epoch, progress.total, steps_per_epoch)
                values = _step(run, task, batches, moment, rate)
                progress = Progress(epoch, step + 1, moment.total)
                journal.advance()
                if moment.logged:
                    _log(run, task, journal, progress, values, rate)
                _stop_if_asked(run, progress, stop)
            if _checkpoint_due(recipe, epoch):
                if task.end_epoch is not None:
                    task.end_epoch(epoch, progress.total, journal)
                _save(run, Progress(epoch + 1, 0, progress.total))
            progress = Progress(epoch + 1, 0, progress.total)
    make_whole(run.module)


def _moment(recipe: Recipe, epoch: int, taken: int, steps_per_epoch: int) -> Moment:
    steps = recipe.train.epochs * steps_per_epoch
    total = taken + 1
    return Moment(
        epoch, total, total / steps, total % recipe.train.log_every == 0 or total == steps
    )


def _log(
    run: Run, task: Task, journal: Journal, progress: Progress, values: Values, rate: float
) -> None:
    _check_finite(run, progress)
    numbers = _numbers(run, values, rate)
    journal.metrics(progress.total, progress.epoch, numbers)
    sentence = task.watch(numbers) if task.watch is not None else None
    if sentence is not None:
        journal.say(sentence)
        journal.event("alarm", progress.total, progress.epoch, {"text": sentence})


@contextmanager
def _ended(batches: Iterator[Batch]) -> Iterator[None]:
    """Loader workers end with the loop, however it is left."""
    try:
        yield
    finally:
        end_workers(batches)


def try_step(run: Run, task: Task, batches: Iterator[Batch], steps_per_epoch: int) -> None:
    """Take one step and say what the run would be; nothing is written.

    Raises:
        NotFiniteError: If the loss is nan or infinite.
    """
    recipe = run.recipe
    started = time.perf_counter()
    run.model.train()
    with _ended(batches):
        moment = _moment(recipe, 0, 0, steps_per_epoch)
        values = _step(run, task, batches, moment, _learning_rate(run, 0, steps_per_epoch))
    _check_finite(run, Progress(total=1))
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in run.module.parameters())
    run.accelerator.print(
        f"{recipe.name}: {len(run.images)} images, {parameters / 1e6:.2f} M parameters, "
        f"{recipe.train.epochs} epochs of {steps_per_epoch} steps; the first step took {seconds:.1f} s, "
        f"loss {values['loss'].item():.4g}; dry run, nothing written"
    )


def _learning_rate(run: Run, step: int, steps_per_epoch: int) -> float:
    recipe = run.recipe
    return learning_rate(
        step,
        recipe.optim,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.train.epochs,
        gh_start=recipe.gh_start,
    )


def _step(run: Run, task: Task, batches: Iterator[Batch], moment: Moment, rate: float) -> Values:
    """One optimiser step over all parts of a global batch; the numbers of its last part."""
    recipe, accelerator = run.recipe, run.accelerator
    # Dropout and stochastic depth draw from (seed, step, process): no random state to save.
    torch.manual_seed(recipe.seed + 1_000_003 * moment.total + 7_919 * accelerator.process_index)
    set_learning_rate(run.optimiser, rate)
    run.optimiser.zero_grad()
    values: Values = {}
    for part in range(recipe.train.accumulation):
        if part < recipe.train.accumulation - 1:
            with accelerator.no_sync(run.model):
                values = _part(run, task, next(batches), moment)
        else:
            values = _part(run, task, next(batches), moment)
    if recipe.optim.clip is not None:
        norm = nn.utils.clip_grad_norm_(run.model.parameters(), recipe.optim.clip)
        values["grad_norm"] = whole(norm)
    run.optimiser.step()
    if task.after_step is not None:
        task.after_step(moment)
    return values


def _part(run: Run, task: Task, batch: Batch, moment: Moment) -> Values:
    device = run.accelerator.device
    values = task.part(tuple(tensor.to(device, non_blocking=True) for tensor in batch), moment)
    run.accelerator.backward(values["loss"] / run.recipe.train.accumulation)
    values = {name: value.detach() for name, value in values.items()}
    run.finite &= values["loss"].isfinite()
    return values


def _numbers(run: Run, values: Values, rate: float) -> dict[str, float]:
    """Means over the processes, on the host; a collective."""
    means = run.accelerator.reduce(torch.stack(list(values.values())), "mean")
    return dict(zip(values, means.tolist(), strict=True)) | {"lr": rate}


def _check_finite(run: Run, progress: Progress) -> None:
    """Look at the loss of the steps since the last look; a poisoned state is never saved.

    Raises:
        NotFiniteError: On every process.
    """
    if any_process(not bool(run.finite), run.accelerator.device):
        raise NotFiniteError(
            f"the loss is not finite in epoch {progress.epoch}, at step {progress.total} or up to "
            f"{run.recipe.train.log_every} steps before it; lower optim.lr or set optim.clip"
        )


def _checkpoint_due(recipe: Recipe, epoch: int) -> bool:
    return (epoch + 1) % recipe.train.checkpoint_every == 0 or epoch + 1 == recipe.train.epochs


def _stop_if_asked(run: Run, progress: Progress, stop: StopRequest) -> None:
    alone = run.accelerator.num_processes == 1
    if not alone and progress.total % run.recipe.train.log_every:
        return  # agreeing costs a collective
    if any_process(stop.asked, run.accelerator.device):
        _save(run, progress)
        raise Stopped(f"stopped after step {progress.total}; run the same command to go on")


def _save(run: Run, progress: Progress) -> None:
    for (
        tensor
    ) in run.module.state_dict().values():  # a gradient may be infinite where the loss is not
        run.finite &= own_part(tensor).isfinite().all()
    _check_finite(run, progress)
    main = run.accelerator.is_main_process
    if main or run.accelerator.is_fsdp2:
        save_checkpoint(
            run.checkpoints,
            progress,
            module=run.module,
            memory=run.memory,
            optimiser=run.optimiser,
            keep=run.recipe.train.keep_checkpoints,
            writes=main,
        )
    run.accelerator.wait_for_everyone()
