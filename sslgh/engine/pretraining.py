"""Pretraining: from a recipe to a backbone in the run directory."""

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sslgh.data import (
    ImageSet,
    PretrainBatch,
    ResumableBatchSampler,
    augment_local_views,
    augment_views,
    input_size,
    training_set,
    view_loader,
)
from sslgh.data.run_images import run_images
from sslgh.engine.backbone_card import backbone_metadata
from sslgh.engine.broken_images import Batch, BrokenImages
from sslgh.engine.build import build_method
from sslgh.engine.checkpoint import Progress
from sslgh.engine.logger import MetricLogger
from sslgh.engine.loop import dry_run_step, train
from sslgh.engine.memory_estimate import check_size
from sslgh.engine.monitor.aux_state import AuxiliaryState, build_auxiliary
from sslgh.engine.monitor.embeddings import batch_health, embedding_norm, gh_share
from sslgh.engine.monitor.refresh import describe_refresh
from sslgh.engine.optim import build_optimizer
from sslgh.engine.run import Run, batch_sampler, is_done, make_run, open_run, watch_broken_images
from sslgh.engine.run_dir import write_status
from sslgh.engine.step import Moment, Task, Values
from sslgh.harmonize import faiss_device
from sslgh.methods import Method, MethodOutput
from sslgh.models import save_backbone
from sslgh.recipe import Recipe

Shown = tuple[MethodOutput, Tensor]


def pretrain(recipe: Recipe, accelerator: Accelerator) -> Path:
    """Pretrain, or go on with, the run of a recipe. Collective: call it on every rank.

    Args:
        recipe: The experiment.
        accelerator: Of :func:`sslgh.engine.launch.init_accelerator`.

    Returns:
        The run directory, with ``backbone.safetensors`` and all that the design promises.

    Raises:
        RecipeError: If the recipe does not fit the data or the run directory.
        DataError: If the images cannot be used.
        CheckpointError: If the checkpoint to go on from cannot be used.
        LaunchError: If another number of processes was asked for.
        NotFiniteError: If a number is nan or infinite, and steps are not to be skipped.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.
    """
    if is_done(recipe, accelerator):
        return recipe.directory
    images, said = run_images(recipe)
    run, method, beside = _build(recipe, accelerator, images)
    assert recipe.method is not None
    name = recipe.method.name + ("+gh" if recipe.harmonize else "")
    size = input_size(recipe.data, run.images)
    card = backbone_metadata(recipe, image_size=size, method=name)
    faiss = recipe.harmonize is not None and recipe.harmonize.population == "faiss"
    progress = open_run(run, said, note=f", FAISS on {faiss_device()}" if faiss else "")
    order, batches = _batches(run, beside, progress, directory=recipe.directory)
    started = time.perf_counter()
    train(run, _task(run, method, beside), batches, progress, order.steps_per_epoch)
    _finish(run, method, card, started)
    return recipe.directory


def dry_run_pretraining(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, take one step and write nothing; raises as `pretrain`."""
    run, method, beside = _build(recipe, accelerator, training_set(recipe.data))
    order, batches = _batches(run, beside, Progress(), directory=None)
    dry_run_step(run, _task(run, method, beside), batches, order.steps_per_epoch)


def _task(run: Run, method: Method, beside: AuxiliaryState) -> Task:
    # What the parts of a step showed waits here: nothing is remembered of a step that is skipped.
    shown: list[Shown] = []
    return Task(
        part=lambda batch, moment: _part(run, batch, moment, beside, shown),
        begin_epoch=lambda *when: _begin_epoch(run, method, beside, *when),
        after_step=lambda moment: _after_step(method, beside, moment, shown),
        skip_step=method.skip_step,
        end_epoch=lambda *when: _end_epoch(beside, *when),
        watch=beside.alarm,
    )


def _batches(
    run: Run, beside: AuxiliaryState, progress: Progress, *, directory: Path | None
) -> tuple[ResumableBatchSampler, BrokenImages]:
    recipe = run.recipe
    order = batch_sampler(run, progress, beside.epoch_indices)
    size = input_size(recipe.data, run.images)
    loader = view_loader(run.images, recipe.data, size=size, seed=recipe.seed, order=order)
    return order, watch_broken_images(iter(loader), run, directory)


def _build(
    recipe: Recipe, accelerator: Accelerator, images: ImageSet
) -> tuple[Run, Method, AuxiliaryState]:
    """All objects; what the settings make impossible is the recipe's fault.

    Raises:
        ValueError: With the sentence of whoever noticed.
    """
    size = input_size(recipe.data, images)
    check_size(recipe, images, size)
    method = build_method(recipe, size)
    if recipe.train.channels_last:
        method = method.to(memory_format=torch.channels_last)
    beside = build_auxiliary(recipe, images, method)
    optimizer = build_optimizer(method, recipe.optim)
    run = make_run(recipe, accelerator, images, method, optimizer, beside)
    return run, method, beside


def _begin_epoch(
    run: Run, method: Method, beside: AuxiliaryState, epoch: int, total: int, journal: MetricLogger
) -> None:
    method.begin_epoch(epoch, run.recipe.train.epochs)
    if beside.boost is not None:
        beside.boost.begin_epoch(epoch)
    harmonizer = beside.harmonizer
    if harmonizer is None:
        return
    before = harmonizer.labels.clone()
    harmonizer.begin_epoch(epoch)
    refresh = harmonizer.last_refresh
    if refresh is not None and refresh.epoch == epoch:
        values, text = describe_refresh(harmonizer, run.images, before)
        journal.log_event("refresh", total, epoch, values)
        journal.info(text)


def _end_epoch(beside: AuxiliaryState, epoch: int, total: int, journal: MetricLogger) -> None:
    if journal.active and beside.labeled is not None:
        journal.log_event("health", total, epoch, beside.report())


def _after_step(
    method: Method, beside: AuxiliaryState, moment: Moment, shown: list[Shown]
) -> Values:
    """Move teachers and remember what the step showed; numbers for the log."""
    method.after_step(moment.done)
    values: Values = {}
    for output, index in shown:
        values = beside.observe(output, index, logged=moment.logged)
    return values


def _part(
    run: Run, batch: Batch, moment: Moment, beside: AuxiliaryState, shown: list[Shown]
) -> Values:
    """Forward of one part of a batch; ``shown`` gets what is to be remembered of the step's parts."""
    recipe = run.recipe
    if len(shown) == recipe.train.accumulation:
        shown.clear()
    index = batch.index
    views = _views(recipe, batch, beside)
    harmonizer = beside.harmonizer
    weights = harmonizer.weights(index) if harmonizer is not None else None
    precision = recipe.train.precision
    with torch.autocast(index.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = run.model(views, weights)
    length = embedding_norm(*output.embeddings, gathered=moment.logged)
    values: Values = {"loss": output.loss, "ssl": output.loss, "embedding_norm": length}
    if harmonizer is not None:
        values["gh"] = harmonizer(*output.embeddings)
        values["loss"] = output.loss + values["gh"]
    if moment.logged:
        values |= batch_health(*output.embeddings)
        if harmonizer is not None:
            values["gh_share"] = gh_share(output.loss, values["gh"], *output.embeddings)
    shown.append((_detached(output), index))
    return values


def _detached(output: MethodOutput) -> MethodOutput:
    """Without the graph, which the backward frees."""
    per_sample = None if output.per_sample is None else output.per_sample.detach()
    z1, z2 = output.embeddings
    return MethodOutput(
        output.loss.detach(), per_sample, (z1.detach(), z2.detach()), output.features.detach()
    )


def _views(recipe: Recipe, batch: Batch, beside: AuxiliaryState) -> list[Tensor]:
    """Two full views and the local crops."""
    assert isinstance(batch, PretrainBatch)
    augment, boost, size = recipe.data.augment, beside.boost, batch.crops.shape[-1]
    strength = boost.strength(batch.index) if boost is not None else None
    ops = recipe.boost.ops if recipe.boost is not None else 1
    views = augment_views(batch.crops, batch.params, augment, strength=strength, ops=ops)
    views += augment_local_views(
        batch.local_crops, batch.local_params, augment, size=size, strength=strength, ops=ops
    )
    if recipe.train.channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    return views


def _finish(run: Run, method: Method, card: dict[str, Any], started: float) -> None:
    recipe = run.recipe
    if run.accelerator.is_main_process:
        save_backbone(method.backbone, recipe.directory, card)
        seconds = round(time.perf_counter() - started)
        write_status(recipe.directory, "done", epoch=recipe.train.epochs, seconds=seconds)
    run.accelerator.wait_for_everyone()
