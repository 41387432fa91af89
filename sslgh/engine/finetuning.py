"""Supervised training on long-tailed labels: from a recipe to a network in the run directory.

Shapes: N images, C classes, F features.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sslgh.classify.embedding_terms import TermSettings
from sslgh.classify.network import Network
from sslgh.classify.objectives import DEFERRED_FROM, OBJECTIVES
from sslgh.data import (
    DataError,
    ImageSet,
    ResumableBatchSampler,
    SupervisedBatch,
    augment_views,
    class_sampling,
    drawn_shares,
    input_size,
    labeled_loader,
    normalize,
    training_set,
)
from sslgh.data.run_images import run_images
from sslgh.distributed import gather, weighted_mean
from sslgh.engine.backbone_card import backbone_metadata
from sslgh.engine.broken_images import Batch, BrokenImages
from sslgh.engine.build import CONTRAST_VIEWS, build_network
from sslgh.engine.checkpoint import Progress
from sslgh.engine.loop import dry_run_step, train
from sslgh.engine.memory_estimate import check_size
from sslgh.engine.optim import build_optimizer
from sslgh.engine.run import Run, batch_sampler, is_done, make_run, open_run, watch_broken_images
from sslgh.engine.run_dir import write_status
from sslgh.engine.step import Moment, Task, Values
from sslgh.models import save_backbone
from sslgh.models.serialization import save_classifier
from sslgh.recipe import Finetune, Recipe, RecipeError

# Largest margin of LDAM in cosine units (its code).
LARGEST_MARGIN = 0.5


def finetune(recipe: Recipe, accelerator: Accelerator) -> Path:
    """Train, or go on with, the supervised run of a recipe. Collective: call it on every rank.

    Args:
        recipe: With a ``finetune`` section.
        accelerator: Of :func:`sslgh.engine.launch.init_accelerator`.

    Returns:
        The run directory, with ``backbone.safetensors`` and ``classifier.safetensors``.

    Raises:
        RecipeError: If the recipe does not fit the data or the run directory.
        DataError: If the images cannot be used or have no labels.
        CheckpointError: If the checkpoint to go on from cannot be used.
        LaunchError: If another number of processes was asked for.
        NotFiniteError: If a number is nan or infinite, and steps are not to be skipped.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.
    """
    settings = _settings(recipe)
    if is_done(recipe, accelerator):
        return recipe.directory
    images, said = run_images(recipe)
    run, network, average = _build(recipe, settings, accelerator, images)
    size = input_size(recipe.data, run.images)
    card = backbone_metadata(recipe, image_size=size, method=f"finetune {settings.objective}")
    progress = open_run(run, said)
    order, batches = _batches(run, settings, progress, directory=recipe.directory)
    started = time.perf_counter()
    train(run, _task(run, network, average), batches, progress, order.steps_per_epoch)
    _finish(run, _judged(network, average), card, started)
    return recipe.directory


def dry_run_finetuning(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, take one step and write nothing; raises as `finetune`."""
    settings = _settings(recipe)
    run, network, average = _build(recipe, settings, accelerator, training_set(recipe.data))
    order, batches = _batches(run, settings, Progress(), directory=None)
    dry_run_step(run, _task(run, network, average), batches, order.steps_per_epoch)


def _settings(recipe: Recipe) -> Finetune:
    if recipe.finetune is None:
        raise RecipeError("finetuning needs finetune:; this recipe has method: (sslgh pretrain)")
    return recipe.finetune


def _batches(
    run: Run, settings: Finetune, progress: Progress, *, directory: Path | None
) -> tuple[ResumableBatchSampler, BrokenImages]:
    recipe, images = run.recipe, run.images
    assert images.labels is not None
    kind = settings.sampling
    epoch_indices = class_sampling(
        images.labels, kind, seed=recipe.seed, epochs=recipe.train.epochs
    )
    views = 3 if settings.objective in CONTRAST_VIEWS else 1
    order = batch_sampler(run, progress, None if kind == "instance" else epoch_indices, views=views)
    loader = labeled_loader(
        images,
        recipe.data,
        size=input_size(recipe.data, images),
        seed=recipe.seed,
        order=order,
        policy=settings.policy,
        contrast=views > 1,
    )
    return order, watch_broken_images(iter(loader), run, directory)


def _build(
    recipe: Recipe, settings: Finetune, accelerator: Accelerator, images: ImageSet
) -> tuple[Run, Network, AveragedModel | None]:
    if images.labels is None:
        raise DataError(
            f"finetuning needs labels, and source {recipe.data.source} at {recipe.data.root} has none"
        )
    size = input_size(recipe.data, images)
    check_size(recipe, images, size)
    network = build_network(recipe, size, len(images.class_names))
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    average = None
    if settings.ema is not None:
        # Batch statistics are averaged like the weights they belong to.
        decay = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=decay, use_buffers=True)
    optimizer = build_optimizer(network, recipe.optim)
    run = make_run(recipe, accelerator, images, network, optimizer, average)
    return run, network, average


def _task(run: Run, network: Network, average: AveragedModel | None) -> Task:
    """The objective as a part of the loop."""
    settings, counts = run.recipe.finetune, run.images.class_counts
    assert settings is not None
    epochs, device = run.recipe.train.epochs, run.accelerator.device
    # The prior of what is drawn: with classes drawn alike, a margin for the tail would count it twice.
    shares = [
        drawn_shares(counts, settings.sampling, epoch=epoch, epochs=epochs)
        for epoch in range(epochs)
    ]
    priors = torch.from_numpy(np.stack(shares)).float().to(device)
    taus = [_strength(settings, float(share[share > 0].min())) for share in shares]

    def part(batch: Batch, moment: Moment) -> Values:
        epoch = moment.epoch
        return _part(run, settings, priors[epoch], taus[epoch], batch, epoch)

    def after(moment: Moment) -> Values:
        if average is not None:
            average.update_parameters(network)
        return {}

    return Task(part=part, after_step=after)


def _strength(settings: Finetune, smallest: float) -> float:
    """Tau as the rule takes it, for a smallest class share."""
    if settings.objective in ("ldam", "ldam-drw") and settings.classifier == "cosine":
        # The rule's margin is tau pi^(-1/4) in units of logits; LDAM's largest is 0.5 in cosines.
        return float(settings.tau * LARGEST_MARGIN * settings.cosine_scale * smallest**0.25)
    return settings.tau


def _part(
    run: Run,
    settings: Finetune,
    prior: Tensor,
    tau: float,
    batch: Batch,
    epoch: int,
) -> Values:
    """Forward and loss of one part of a batch."""
    recipe = run.recipe
    assert isinstance(batch, SupervisedBatch)
    target = batch.target
    views = [normalize(batch.view)]
    if settings.objective in CONTRAST_VIEWS:
        views += augment_views(batch.crops, batch.params, recipe.data.augment)
    if recipe.train.channels_last:
        views = [part.contiguous(memory_format=torch.channels_last) for part in views]
    with torch.autocast(
        target.device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"
    ):
        found = run.model(views[0], views[1:])
    per_sample = OBJECTIVES[settings.objective].loss(
        found.logits,
        target,
        prior,
        tau=tau,
        num_samples=len(run.images),
        deferred=epoch >= _deferred_from(settings, recipe.train.epochs),
    )
    values = {"logit": weighted_mean(per_sample)}
    values["loss"] = settings.logit_weight * values["logit"]
    objective = OBJECTIVES[settings.objective]
    if objective.embedding is not None:
        term = TermSettings(settings.tau, settings.temperature, settings.gamma, settings.scale)
        # No anchor is without a mate: each has its class's proxy, or the other view.
        values["embedding"] = weighted_mean(
            objective.embedding(found.embeddings, target, found.proxies, prior, term, gather)
        )
        weight = settings.embedding_weight
        weight = objective.embedding_weight if weight is None else weight
        values["loss"] = values["loss"] + weight * values["embedding"]
    return values


def _deferred_from(settings: Finetune, epochs: int) -> int:
    start = settings.deferred_epoch
    return math.ceil(DEFERRED_FROM * epochs) if start is None else start


def _judged(network: Network, average: AveragedModel | None) -> Network:
    if average is None:
        return network
    module = average.module
    assert isinstance(module, Network)
    return module


def _finish(run: Run, network: Network, card: dict[str, Any], started: float) -> None:
    recipe = run.recipe
    if run.accelerator.is_main_process:
        save_backbone(network.backbone, recipe.directory, card)
        save_classifier(network.classifier, recipe.directory)
        seconds = round(time.perf_counter() - started)
        write_status(recipe.directory, "done", epoch=recipe.train.epochs, seconds=seconds)
    run.accelerator.wait_for_everyone()
