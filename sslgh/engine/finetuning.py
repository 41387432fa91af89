"""Supervised training on long-tailed labels: from a recipe to a network in the run directory.

Shapes: N images, C classes, F features.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sslgh.classify.embedding_terms import TermInput, TermSettings
from sslgh.classify.network import Network
from sslgh.classify.objectives import DEFERRED_FROM, OBJECTIVES
from sslgh.data import (
    DataError,
    ImageSet,
    SupervisedBatch,
    augment_views,
    class_sampling,
    drawn_shares,
    labeled_loader,
    training_set,
)
from sslgh.data.run_images import run_images
from sslgh.distributed import gather, weighted_mean
from sslgh.engine import trainer
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.build import backbone_metadata, build_network, input_side
from sslgh.engine.checkpoint import Progress
from sslgh.engine.class_means import start_from_class_means
from sslgh.engine.kept_init import with_kept_init
from sslgh.engine.logger import MetricLogger
from sslgh.engine.memory import check_memory, memory_guard
from sslgh.engine.precision import with_precision
from sslgh.engine.run import Run, is_done, open_run
from sslgh.engine.run_dir import took_a_step, write_status
from sslgh.engine.trainer import Metrics, StepInfo
from sslgh.models import save_backbone
from sslgh.models.serialization import save_adapted, save_classifier
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Finetune, Recipe, RecipeError

# Largest margin of LDAM in cosine units (its code).
LARGEST_MARGIN = 0.5


def finetune(recipe: Recipe, accelerator: Accelerator) -> Path:
    """Train, or resume, the supervised run of a recipe. Collective: call it on every rank.

    Args:
        recipe: The experiment, with a ``finetune`` section.
        accelerator: Result of `init_accelerator`.

    Returns:
        The run directory, with ``backbone.safetensors`` and ``classifier.safetensors``.

    Raises:
        RecipeError: If the recipe does not fit the data or the run directory.
        DataError: If the images cannot be used or have no labels.
        CheckpointError: If the checkpoint to resume from cannot be used.
        LaunchError: If another number of processes was asked for.
        NotFiniteError: If a value is NaN or infinite, and steps are not to be skipped.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.
    """
    settings = _settings(recipe)
    if is_done(recipe, accelerator):
        return recipe.directory
    recipe = with_precision(recipe, accelerator)
    images = run_images(recipe)
    start = recipe
    if recipe.model.init is not None:
        start = with_kept_init(recipe, began=took_a_step(recipe.directory))
    stage = Finetuning(start, accelerator, images)
    # Its record names `model.init`, not the copy.
    stage.run.recipe = recipe.model_copy(update={"data": start.data})
    check_memory(stage, stage.image_size)
    # Made before the run, while `model.init` is still there.
    method = f"finetune {settings.objective}"
    metadata = backbone_metadata(start, image_size=stage.image_size, method=method)
    progress = open_run(stage.run)
    if settings.classifier_start == "class-means" and progress.global_step == 0:
        start_from_class_means(
            stage.network, images, recipe, size=stage.image_size, accelerator=accelerator
        )
    started = time.perf_counter()
    trainer.train(stage, stage.batches(progress, recipe.directory), progress)
    if accelerator.is_main_process:
        network = stage.evaluated_network
        save = save_backbone if recipe.model.adapter is None else save_adapted
        save(network.backbone, recipe.directory, metadata)
        save_classifier(network.classifier, recipe.directory, images.class_names)
        seconds = round(time.perf_counter() - started)
        write_status(recipe.directory, "done", epoch=recipe.train.epochs, seconds=seconds)
    accelerator.wait_for_everyone()
    return recipe.directory


def dry_run_finetuning(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, take one step and write nothing; raises as `finetune`."""
    recipe = with_precision(recipe, accelerator)
    stage = Finetuning(recipe, accelerator, training_set(recipe.data))
    check_memory(stage, stage.image_size)
    trainer.dry_run(stage, stage.batches(Progress(), None))


def _settings(recipe: Recipe) -> Finetune:
    if recipe.finetune is None:
        raise RecipeError("finetuning needs finetune:; this recipe has method: (sslgh pretrain)")
    return recipe.finetune


class Finetuning:
    """A network trained on labels with a long-tailed objective, as a stage of training.

    Args:
        recipe: The experiment, with a ``finetune`` section.
        accelerator: Device and ranks.
        images: Training set with labels.

    Raises:
        DataError: If there are no labels.
        ValueError: If the settings do not fit; the message names the key.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, images: ImageSet) -> None:
        settings = _settings(recipe)
        if images.labels is None:
            raise DataError(
                f"finetuning needs labels, and source {recipe.data.source} at {recipe.data.root} has none"
            )
        self.recipe, self.settings, self.images = recipe, settings, images
        self.image_size = input_side(recipe, images)
        with memory_guard(recipe):
            self.network = build_network(recipe, self.image_size, len(images.class_names))
        self.contrasts = bool(OBJECTIVES[settings.objective].contrast_heads)
        if recipe.train.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.ema: AveragedModel | None = None
        if settings.ema is not None:
            # Batch statistics are averaged like the weights they belong to.
            decay = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
            with memory_guard(recipe, trained=False):
                self.ema = AveragedModel(self.network, multi_avg_fn=decay, use_buffers=True)
        kind, epochs = settings.sampling, recipe.train.epochs
        drawn = class_sampling(images.labels, kind, seed=recipe.seed, epochs=epochs)
        self.run = Run(
            recipe,
            accelerator,
            images,
            self.network,
            self.ema,
            epoch_indices=None if kind == "instance" else drawn,
            views=3 if self.contrasts else 1,
        )
        # The prior of what is drawn: with balanced classes, a margin for the tail would count it twice.
        shares = [
            drawn_shares(images.class_counts, kind, epoch=epoch, epochs=epochs)
            for epoch in range(epochs)
        ]
        self.priors = torch.from_numpy(np.stack(shares)).float().to(accelerator.device)
        self.taus = [_tau(settings, float(share[share > 0].min())) for share in shares]

    @property
    def evaluated_network(self) -> Network:
        """The network that is saved: the EMA where there is one."""
        network = self.network if self.ema is None else self.ema.module
        assert isinstance(network, Network)
        return network

    def batches(self, progress: Progress, directory: Path | None) -> BrokenImages:
        """Batches of this rank from ``progress`` on; broken images are reported in ``directory``."""
        loader = labeled_loader(
            self.images,
            self.recipe.data,
            size=self.image_size,
            seed=self.recipe.seed,
            order=self.run.sampler.resume_at(progress.epoch, progress.step_in_epoch),
            policy=self.settings.policy,
            contrast=self.contrasts,
            preprocessing=Preprocessing.of(self.network.backbone),
        )
        return self.run.watched(loader, directory)

    def begin_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Nothing to prepare: priors and margins of all epochs are known."""

    def loss(self, batch: SupervisedBatch, step: StepInfo) -> Metrics:
        """Loss of the logits plus, for objectives that have one, the embedding term."""
        settings, objective = self.settings, OBJECTIVES[self.settings.objective]
        prior = self.priors[step.epoch]
        normalize = Preprocessing.of(self.network.backbone).normalize
        views = [normalize(batch.view)]
        if self.contrasts:
            augment = self.recipe.data.augment
            views += augment_views(batch.crops, batch.params, augment, normalize=normalize)
        if self.recipe.train.channels_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        bf16 = self.recipe.train.precision == "bf16"
        with torch.autocast(batch.view.device.type, torch.bfloat16, enabled=bf16):
            found = self.run.model(views[0], views[1:])
        start = settings.deferred_epoch
        if start is None:
            start = math.ceil(DEFERRED_FROM * self.recipe.train.epochs)
        per_sample = objective.loss(
            found.logits,
            batch.target,
            prior,
            tau=self.taus[step.epoch],
            num_samples=len(self.images),
            deferred=step.epoch >= start,
        )
        metrics = {"logit": weighted_mean(per_sample)}
        metrics["loss"] = settings.logit_weight * metrics["logit"]
        if objective.embedding is not None:
            term = TermSettings(settings.tau, settings.temperature, settings.gamma, settings.scale)
            # Every anchor has a mate: the proxy of its class, or the other view.
            per_sample = objective.embedding(
                TermInput(found.embeddings, batch.target, found.proxies, prior, term, gather)
            )
            metrics["embedding"] = weighted_mean(per_sample)
            weight = settings.embedding_weight
            weight = objective.embedding_weight if weight is None else weight
            metrics["loss"] = metrics["loss"] + weight * metrics["embedding"]
        return metrics

    def discard_step(self) -> None:
        """Nothing is buffered during `loss`."""

    def after_step(self, step: StepInfo) -> Metrics:
        """Update the EMA."""
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return {}

    def alarm(self, metrics: dict[str, float]) -> str | None:
        """No metric of supervised training rings an alarm."""
        return None

    def end_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Nothing to log."""


def _tau(settings: Finetune, smallest: float) -> float:
    """Tau as the margin rule takes it, for a smallest class share."""
    if settings.objective in ("ldam", "ldam-drw") and settings.classifier == "cosine":
        # The rule's margin is tau pi^(-1/4) in units of logits; LDAM's largest is 0.5 in cosines.
        return float(settings.tau * LARGEST_MARGIN * settings.cosine_scale * smallest**0.25)
    return settings.tau
