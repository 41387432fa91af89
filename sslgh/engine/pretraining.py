"""Pretraining: from a recipe to a backbone in the run directory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from sslgh import __version__
from sslgh.data import BatchOrder, ImageSet, input_size, render_views, training_set, view_loader
from sslgh.data.colour import MEAN, STD
from sslgh.distributed import any_process
from sslgh.engine.build import build_harmonizer, build_method
from sslgh.engine.checkpoint import Progress, list_checkpoints, load_checkpoint, save_checkpoint
from sslgh.engine.journal import Journal
from sslgh.engine.optimiser import build_optimiser, set_learning_rate
from sslgh.engine.population_report import describe_refresh
from sslgh.engine.run_directory import check_directory, open_directory, read_status, write_status
from sslgh.engine.schedule import learning_rate
from sslgh.engine.signals import Stopped, StopRequest
from sslgh.engine.world import check_world, describe_world, world_environment
from sslgh.harmonize import GeometricHarmonizer, faiss_device
from sslgh.methods import Method
from sslgh.models import save_backbone
from sslgh.recipe import Recipe, RecipeError

Batch = tuple[Tensor, Tensor, Tensor]


class NotFiniteError(RuntimeError):
    """The loss became nan or infinite; the last checkpoint is from before."""


@dataclass
class Run:
    """The objects of a run; ``method`` is the bare module, ``model`` what Accelerate made of it."""

    recipe: Recipe
    accelerator: Accelerator
    images: ImageSet
    method: Method
    model: nn.Module
    optimiser: torch.optim.Optimizer
    harmonizer: GeometricHarmonizer | None
    finite: Tensor

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.recipe.directory / "checkpoints"


def pretrain(recipe: Recipe, accelerator: Accelerator) -> Path:
    """Pretrain, or go on with, the run of a recipe; a collective.

    Args:
        recipe: The experiment.
        accelerator: Of :func:`sslgh.engine.world.start_world`.

    Returns:
        The run directory, with ``backbone.safetensors`` and all that the design promises.

    Raises:
        RecipeError: If the recipe does not fit the data or the run directory.
        DataError: If the images cannot be used.
        CheckpointError: If the checkpoint to go on from cannot be used.
        WorldError: If another number of processes was asked for.
        NotFiniteError: If the loss is nan or infinite.
        Stopped: After saving, if SIGTERM or SIGINT came.
    """
    directory = recipe.directory
    check_world(accelerator, recipe.train.processes)
    known = check_directory(recipe)
    done = known and read_status(directory).get("state") == "done"
    _agree_on_the_start(directory, done=done)
    if done:
        accelerator.print(f"{directory}: pretraining is done already")
        return directory
    run = _build(recipe, accelerator)
    _order(run, Progress())  # refuses an impossible batch before anything is written
    world = describe_world(accelerator)
    if recipe.harmonize is not None and recipe.harmonize.population == "faiss":
        world += f", FAISS on {faiss_device()}"
    accelerator.print(f"{recipe.name}: {len(run.images)} images, {world}")
    if accelerator.is_main_process:
        open_directory(recipe, {"world": world, **world_environment()})
    accelerator.wait_for_everyone()
    _train(run, _resume(run))
    return directory


def _build(recipe: Recipe, accelerator: Accelerator) -> Run:
    """All objects; what the settings make impossible is the recipe's fault.

    Raises:
        ValueError: With the sentence of whoever noticed.
    """
    images = training_set(recipe.data)
    method = build_method(recipe, input_size(recipe.data, images))
    if recipe.train.channels_last:
        method = method.to(memory_format=torch.channels_last)
    harmonizer = build_harmonizer(recipe, len(images), method.embedding_dim)
    optimiser = build_optimiser(method, recipe.optim)
    # The schedule is not prepared: Accelerate would step it once a process.
    model, optimiser = accelerator.prepare(method, optimiser)
    if harmonizer is not None:
        harmonizer = harmonizer.to(accelerator.device)
    finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
    return Run(recipe, accelerator, images, method, model, optimiser, harmonizer, finite)


def _agree_on_the_start(directory: Path, *, done: bool) -> None:
    """Every process must see the same run directory.

    Raises:
        RecipeError: On every process, if some see another.
    """
    latest = [path.name for path in list_checkpoints(directory / "checkpoints")[-1:]]
    found = gather_object([(done, latest)])
    if any(state != found[0] for state in found):
        raise RecipeError(
            f"run directory {directory} differs between machines; choose a run_dir that all share"
        )


def _resume(run: Run) -> Progress:
    found = list_checkpoints(run.checkpoints)
    if not found:
        return Progress()
    progress = load_checkpoint(
        found[-1], method=run.method, harmonizer=run.harmonizer, optimiser=run.optimiser
    )
    run.accelerator.print(
        f"going on from epoch {progress.epoch}, step {progress.total} ({found[-1]})"
    )
    return progress


def _order(run: Run, progress: Progress) -> BatchOrder:
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
    )


def _train(run: Run, progress: Progress) -> None:
    """All epochs from ``progress`` on."""
    recipe, main = run.recipe, run.accelerator.is_main_process
    order = _order(run, progress)
    size = input_size(recipe.data, run.images)
    loader = view_loader(run.images, recipe.data, size=size, seed=recipe.seed, order=order)
    batches = iter(loader)
    journal = Journal(
        recipe.directory,
        active=main,
        steps=recipe.train.epochs * order.steps_per_epoch,
        start=progress.total,
        images_per_step=recipe.train.batch_size,
    )
    started = time.perf_counter()
    with journal, StopRequest() as stop:
        for epoch in range(progress.epoch, recipe.train.epochs):
            if main:
                write_status(recipe.directory, "running", epoch=epoch, step=progress.total)
            _begin_epoch(run, epoch, progress.total, journal)
            run.model.train()
            for step in range(progress.step, order.steps_per_epoch):
                rate = _learning_rate(run, progress.total, order.steps_per_epoch)
                values = _step(run, batches, progress.total, rate)
                progress = Progress(epoch, step + 1, progress.total + 1)
                journal.advance()
                last = step + 1 == order.steps_per_epoch and epoch + 1 == recipe.train.epochs
                if progress.total % recipe.train.log_every == 0 or last:
                    _check_finite(run, progress)
                    journal.metrics(progress.total, epoch, _numbers(run, values, rate))
                _stop_if_asked(run, progress, stop)
            progress = Progress(epoch + 1, 0, progress.total)
            if _checkpoint_due(recipe, epoch):
                _save(run, progress)
    _finish(run, size, started)


def _begin_epoch(run: Run, epoch: int, total: int, journal: Journal) -> None:
    if run.harmonizer is None:
        return
    run.harmonizer.begin_epoch(epoch)
    refresh = run.harmonizer.last_refresh
    if refresh is not None and refresh.epoch == epoch:
        values, text = describe_refresh(run.harmonizer, run.images)
        journal.event("refresh", total, epoch, values)
        journal.say(text)


def _learning_rate(run: Run, step: int, steps_per_epoch: int) -> float:
    recipe = run.recipe
    return learning_rate(
        step,
        recipe.optim,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.train.epochs,
        gh_start=recipe.gh_start,
    )


def _step(run: Run, batches: Iterator[Batch], total: int, rate: float) -> dict[str, Tensor]:
    """One optimiser step over all parts of a global batch; the numbers of its last part."""
    train, accelerator = run.recipe.train, run.accelerator
    # Dropout and stochastic depth draw from (seed, step, process): no random state to save.
    torch.manual_seed(run.recipe.seed + 1_000_003 * (1 + total) + 7_919 * accelerator.process_index)
    set_learning_rate(run.optimiser, rate)
    run.optimiser.zero_grad()
    values: dict[str, Tensor] = {}
    for part in range(train.accumulation):
        if part < train.accumulation - 1:
            with accelerator.no_sync(run.model):
                values = _part(run, next(batches))
        else:
            values = _part(run, next(batches))
    if run.recipe.optim.clip is not None:
        values["grad_norm"] = nn.utils.clip_grad_norm_(
            run.model.parameters(), run.recipe.optim.clip
        )
    run.optimiser.step()
    return values


def _part(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Forward, backward and observation of one part of a batch."""
    recipe, accelerator, harmonizer = run.recipe, run.accelerator, run.harmonizer
    crops, draws, index = (tensor.to(accelerator.device, non_blocking=True) for tensor in batch)
    views = render_views(crops, draws, recipe.data.augment)
    if recipe.train.channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    weights = harmonizer.weights(index) if harmonizer is not None else None
    with torch.autocast(
        accelerator.device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"
    ):
        output = run.model(views, weights)
    loss = output.loss
    values = {"ssl": output.loss.detach()}
    if harmonizer is not None:
        term = harmonizer(*output.embeddings)
        loss = loss + term
        values["gh"] = term.detach()
    values["loss"] = loss.detach()
    accelerator.backward(loss / recipe.train.accumulation)
    run.finite &= loss.detach().isfinite()
    z = output.embeddings[0].detach()
    values["embedding_std"] = _spread(z)
    if harmonizer is not None:
        harmonizer.observe(z, index)
    return values


def _spread(z: Tensor) -> Tensor:
    """Mean over the axes of the standard deviation of normalised embeddings, times sqrt(D).

    Near 1 for embeddings that fill the sphere, 0 for collapsed ones (SimSiam, fig. 2).
    """
    spread: Tensor = F.normalize(z.float()).std(0, correction=0).mean() * z.shape[1] ** 0.5
    return spread


def _numbers(run: Run, values: dict[str, Tensor], rate: float) -> dict[str, float]:
    """Means over the processes, on the host; a collective."""
    names = [name for name in ("loss", "ssl", "gh", "embedding_std", "grad_norm") if name in values]
    means = run.accelerator.reduce(torch.stack([values[name] for name in names]), "mean")
    return dict(zip(names, means.tolist(), strict=True)) | {"lr": rate}


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
    ) in run.method.state_dict().values():  # a gradient may be infinite where the loss is not
        run.finite &= tensor.isfinite().all()
    _check_finite(run, progress)
    if run.accelerator.is_main_process:
        save_checkpoint(
            run.checkpoints,
            progress,
            method=run.method,
            harmonizer=run.harmonizer,
            optimiser=run.optimiser,
            keep=run.recipe.train.keep_checkpoints,
        )
    run.accelerator.wait_for_everyone()


def _finish(run: Run, size: int, started: float) -> None:
    recipe = run.recipe
    if run.accelerator.is_main_process:
        save_backbone(run.method.backbone, recipe.directory, _card(recipe, size))
        seconds = round(time.perf_counter() - started)
        write_status(recipe.directory, "done", epoch=recipe.train.epochs, seconds=seconds)
    run.accelerator.wait_for_everyone()


def _card(recipe: Recipe, size: int) -> dict[str, Any]:
    return {
        "format": 1,
        "backbone": recipe.model.backbone,
        "stem": recipe.model.stem,
        "width": recipe.model.width,
        "image_size": size,
        "mean": MEAN,
        "std": STD,
        "method": recipe.method.name + ("+gh" if recipe.harmonize else ""),
        "run": recipe.name,
        "sslgh": __version__,
    }
