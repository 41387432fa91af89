"""Pretraining: from a recipe to a backbone in the run directory."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sslgh.data import (
    BatchOrder,
    input_size,
    render_local_views,
    render_views,
    training_set,
    view_loader,
)
from sslgh.engine.build import build_method
from sslgh.engine.card import backbone_card
from sslgh.engine.checkpoint import Progress
from sslgh.engine.collapse import CollapseAlarm
from sslgh.engine.companions import Companions, build_companions
from sslgh.engine.health import batch_health, gh_share
from sslgh.engine.journal import Journal
from sslgh.engine.loop import (
    Batch,
    Moment,
    Run,
    Task,
    Values,
    batch_order,
    is_done,
    make_run,
    open_run,
    train,
    try_step,
)
from sslgh.engine.optimiser import build_optimiser
from sslgh.engine.population_report import describe_refresh
from sslgh.engine.run_directory import write_status
from sslgh.harmonize import faiss_device
from sslgh.methods import Method
from sslgh.models import save_backbone
from sslgh.recipe import Recipe


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
    if is_done(recipe, accelerator):
        return recipe.directory
    run, method, beside = _build(recipe, accelerator)
    assert recipe.method is not None
    name = recipe.method.name + ("+gh" if recipe.harmonize else "")
    size = input_size(recipe.data, run.images)
    card = backbone_card(recipe, image_size=size, method=name)
    faiss = recipe.harmonize is not None and recipe.harmonize.population == "faiss"
    progress = open_run(run, note=f", FAISS on {faiss_device()}" if faiss else "")
    order, batches = _batches(run, beside, progress)
    started = time.perf_counter()
    train(run, _task(run, method, beside), batches, progress, order.steps_per_epoch)
    _finish(run, method, card, started)
    return recipe.directory


def try_pretraining(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, take one step and write nothing; raises as `pretrain`."""
    run, method, beside = _build(recipe, accelerator)
    order, batches = _batches(run, beside, Progress())
    try_step(run, _task(run, method, beside), batches, order.steps_per_epoch)


def _task(run: Run, method: Method, beside: Companions) -> Task:
    return Task(
        part=lambda batch, moment: _part(run, batch, moment, beside),
        begin_epoch=lambda *when: _begin_epoch(run, method, beside, *when),
        after_step=lambda moment: method.after_step(moment.done),
        end_epoch=lambda *when: _end_epoch(beside, *when),
        watch=CollapseAlarm(method.embedding_dim),
    )


def _batches(
    run: Run, beside: Companions, progress: Progress
) -> tuple[BatchOrder, Iterator[Batch]]:
    recipe = run.recipe
    order = batch_order(run, progress, beside.sequence)
    size = input_size(recipe.data, run.images)
    loader = view_loader(run.images, recipe.data, size=size, seed=recipe.seed, order=order)
    return order, iter(loader)


def _build(recipe: Recipe, accelerator: Accelerator) -> tuple[Run, Method, Companions]:
    """All objects; what the settings make impossible is the recipe's fault.

    Raises:
        ValueError: With the sentence of whoever noticed.
    """
    images = training_set(recipe.data)
    method = build_method(recipe, input_size(recipe.data, images))
    if recipe.train.channels_last:
        method = method.to(memory_format=torch.channels_last)
    beside = build_companions(recipe, images, method)
    optimiser = build_optimiser(method, recipe.optim)
    run = make_run(recipe, accelerator, images, method, optimiser, beside)
    return run, method, beside


def _begin_epoch(
    run: Run, method: Method, beside: Companions, epoch: int, total: int, journal: Journal
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
        journal.event("refresh", total, epoch, values)
        journal.say(text)


def _end_epoch(beside: Companions, epoch: int, total: int, journal: Journal) -> None:
    if journal.active and beside.labelled is not None:
        journal.event("health", total, epoch, beside.report())


def _part(run: Run, batch: Batch, moment: Moment, beside: Companions) -> Values:
    """Forward and observation of one part of a batch."""
    recipe = run.recipe
    index = batch[-1]
    views = _views(recipe, batch, beside)
    harmonizer = beside.harmonizer
    weights = harmonizer.weights(index) if harmonizer is not None else None
    precision = recipe.train.precision
    with torch.autocast(index.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = run.model(views, weights)
    values: Values = {"loss": output.loss, "ssl": output.loss}
    if harmonizer is not None:
        values["gh"] = harmonizer(*output.embeddings)
        values["loss"] = output.loss + values["gh"]
    if moment.logged:
        values |= batch_health(*output.embeddings)
        if harmonizer is not None:
            values["gh_share"] = gh_share(output.loss, values["gh"], *output.embeddings)
    return values | beside.observe(output, index, logged=moment.logged)


def _views(recipe: Recipe, batch: Batch, beside: Companions) -> list[Tensor]:
    """Two full views and the local crops."""
    crops, draws, local_crops, local_draws, index = batch
    augment, boost = recipe.data.augment, beside.boost
    strength = boost.strength(index) if boost is not None else None
    ops = recipe.boost.ops if recipe.boost is not None else 1
    views = render_views(crops, draws, augment, strength=strength, ops=ops)
    views += render_local_views(
        local_crops, local_draws, augment, size=crops.shape[-1], strength=strength, ops=ops
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
