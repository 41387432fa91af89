"""Pretraining: from a recipe to a backbone in the run directory."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from sslgh.data import BatchOrder, input_size, render_views, training_set, view_loader
from sslgh.engine.build import build_harmonizer, build_method
from sslgh.engine.card import backbone_card
from sslgh.engine.checkpoint import Progress
from sslgh.engine.journal import Journal
from sslgh.engine.loop import (
    Batch,
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
from sslgh.harmonize import GeometricHarmonizer, faiss_device
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
    run, method, harmonizer = _build(recipe, accelerator)
    assert recipe.method is not None
    name = recipe.method.name + ("+gh" if recipe.harmonize else "")
    size = input_size(recipe.data, run.images)
    card = backbone_card(recipe, image_size=size, method=name)
    faiss = recipe.harmonize is not None and recipe.harmonize.population == "faiss"
    progress = open_run(run, note=f", FAISS on {faiss_device()}" if faiss else "")
    order, batches = _batches(run, progress)
    started = time.perf_counter()
    train(run, _task(run, harmonizer), batches, progress, order.steps_per_epoch)
    _finish(run, method, card, started)
    return recipe.directory


def try_pretraining(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, take one step and write nothing; raises as `pretrain`."""
    run, _, harmonizer = _build(recipe, accelerator)
    order, batches = _batches(run, Progress())
    try_step(run, _task(run, harmonizer), batches, order.steps_per_epoch)


def _task(run: Run, harmonizer: GeometricHarmonizer | None) -> Task:
    return Task(
        part=lambda batch, _: _part(run, batch, harmonizer),
        begin_epoch=lambda *when: _begin_epoch(run, harmonizer, *when),
    )


def _batches(run: Run, progress: Progress) -> tuple[BatchOrder, Iterator[Batch]]:
    recipe = run.recipe
    order = batch_order(run, progress)
    size = input_size(recipe.data, run.images)
    loader = view_loader(run.images, recipe.data, size=size, seed=recipe.seed, order=order)
    return order, iter(loader)


def _build(
    recipe: Recipe, accelerator: Accelerator
) -> tuple[Run, Method, GeometricHarmonizer | None]:
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
    run = make_run(recipe, accelerator, images, method, optimiser, harmonizer)
    return run, method, harmonizer


def _begin_epoch(
    run: Run, harmonizer: GeometricHarmonizer | None, epoch: int, total: int, journal: Journal
) -> None:
    if harmonizer is None:
        return
    harmonizer.begin_epoch(epoch)
    refresh = harmonizer.last_refresh
    if refresh is not None and refresh.epoch == epoch:
        values, text = describe_refresh(harmonizer, run.images)
        journal.event("refresh", total, epoch, values)
        journal.say(text)


def _part(run: Run, batch: Batch, harmonizer: GeometricHarmonizer | None) -> Values:
    """Forward and observation of one part of a batch."""
    recipe = run.recipe
    crops, draws, index = batch
    views = render_views(crops, draws, recipe.data.augment)
    if recipe.train.channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    weights = harmonizer.weights(index) if harmonizer is not None else None
    with torch.autocast(
        crops.device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"
    ):
        output = run.model(views, weights)
    values: Values = {"loss": output.loss, "ssl": output.loss}
    z = output.embeddings[0].detach()
    if harmonizer is not None:
        values["gh"] = harmonizer(*output.embeddings)
        values["loss"] = output.loss + values["gh"]
        harmonizer.observe(z, index)
    values["embedding_std"] = _spread(z)
    return values


def _spread(z: Tensor) -> Tensor:
    """Mean over the axes of the standard deviation of normalised embeddings, times sqrt(D).

    Near 1 for embeddings that fill the sphere, 0 for collapsed ones (SimSiam, fig. 2).
    """
    spread: Tensor = F.normalize(z.float()).std(0, correction=0).mean() * z.shape[1] ** 0.5
    return spread


def _finish(run: Run, method: Method, card: dict[str, Any], started: float) -> None:
    recipe = run.recipe
    if run.accelerator.is_main_process:
        save_backbone(method.backbone, recipe.directory, card)
        seconds = round(time.perf_counter() - started)
        write_status(recipe.directory, "done", epoch=recipe.train.epochs, seconds=seconds)
    run.accelerator.wait_for_everyone()
