"""Self-supervised pretraining: from a recipe to a backbone in the run directory."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sslgh.data import ImageSet, PretrainBatch, augment_views, training_set, view_loader
from sslgh.data.run_images import run_images
from sslgh.engine import trainer
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.build import AuxiliaryState, backbone_metadata, build_method, input_side
from sslgh.engine.checkpoint import Progress
from sslgh.engine.harmonizing import HarmonizedTraining
from sslgh.engine.kept_init import with_kept_init
from sslgh.engine.logger import MetricLogger
from sslgh.engine.memory import check_memory, memory_guard
from sslgh.engine.monitor.embeddings import batch_health, embedding_norm
from sslgh.engine.precision import with_precision
from sslgh.engine.run import Run, is_done, open_run
from sslgh.engine.run_dir import took_a_step, write_status
from sslgh.engine.trainer import Metrics, StepInfo
from sslgh.harmonize import faiss_device
from sslgh.methods import MethodOutput
from sslgh.models import save_backbone
from sslgh.models.serialization import save_adapted
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Recipe


def pretrain(
    recipe: Recipe, accelerator: Accelerator, make_stage: "Callable[..., Pretraining] | None" = None
) -> Path:
    """Pretrain, or resume, the run of a recipe; returns the run directory. Collective: call it on every rank.

    Args:
        recipe: The experiment.
        accelerator: Device and ranks.
        make_stage: What is trained, made of recipe, accelerator and images; None: `Pretraining`.

    Raises:
        ValueError: If recipe, data, checkpoint or number of processes cannot be used.
        NotFiniteError: If a value is NaN or infinite, and steps are not to be skipped.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.
    """
    if is_done(recipe, accelerator):
        return recipe.directory
    if recipe.train.precision != "fp32":
        recipe = with_precision(recipe, accelerator)
    images = run_images(recipe)
    start = recipe
    if recipe.model.init is not None:
        start = with_kept_init(recipe, began=took_a_step(recipe.directory))
    stage = (make_stage or Pretraining)(start, accelerator, images)
    # Its record names `model.init`, not the copy.
    stage.run.recipe = recipe.model_copy(update={"data": start.data})
    check_memory(stage, stage.image_size)
    # Made before the run, while `model.init` is still there.
    assert recipe.method is not None
    name = recipe.method.name + ("+gh" if recipe.harmonize else "")
    metadata = backbone_metadata(start, image_size=stage.image_size, method=name)
    metadata |= Preprocessing.of(stage.method.backbone).card()
    faiss = recipe.harmonize is not None and recipe.harmonize.population == "faiss"
    device_note = f", FAISS on {faiss_device()}" if faiss else ""
    progress = open_run(stage.run, device_note=device_note)
    started = time.perf_counter()
    trainer.train(stage, stage.batches(progress, recipe.directory), progress)
    if accelerator.is_main_process:
        save = save_backbone if recipe.model.adapter is None else save_adapted
        save(stage.method.backbone, recipe.directory, metadata)
        seconds = round(time.perf_counter() - started)
        write_status(recipe.directory, "done", epoch=recipe.train.epochs, seconds=seconds)
    accelerator.wait_for_everyone()
    return recipe.directory


def dry_run_pretraining(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, take one step and write nothing; raises as `pretrain`."""
    recipe = with_precision(recipe, accelerator)
    stage = Pretraining(recipe, accelerator, training_set(recipe.data))
    check_memory(stage, stage.image_size)
    trainer.dry_run(stage, stage.batches(Progress(), None))


class Pretraining:
    """A method, with or without Geometric Harmonization, as a stage of training.

    Args:
        recipe: The experiment.
        accelerator: Device and ranks.
        images: Training set.
        backbone: Module to train instead of the recipe's.

    Raises:
        ValueError: If the settings do not fit; the message names the key.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        images: ImageSet,
        backbone: nn.Module | None = None,
    ) -> None:
        self.recipe, self.images = recipe, images
        self.image_size = input_side(recipe, images)
        with memory_guard(recipe):
            self.method = build_method(recipe, self.image_size, backbone)
        with memory_guard(recipe, trained=False):
            self.aux = AuxiliaryState(recipe, images, self.method)
        if recipe.train.channels_last:
            self.method = self.method.to(memory_format=torch.channels_last)
        gh = self.aux.harmonizer
        indices = gh.epoch_indices if gh is not None and gh.resample else None
        self.run = Run(recipe, accelerator, images, self.method, self.aux, epoch_indices=indices)
        self.harmonizing: HarmonizedTraining | None = None
        if gh is not None:
            self.harmonizing = HarmonizedTraining(self.run, self.method, self.aux, self.image_size)
        self.outputs: list[tuple[MethodOutput, Tensor]] = []

    def batches(self, progress: Progress, directory: Path | None) -> BrokenImages:
        """Batches of this rank from ``progress`` on; broken images are reported in ``directory``."""
        loader = view_loader(
            self.images,
            self.recipe.data,
            size=self.image_size,
            seed=self.recipe.seed,
            order=self.run.sampler.resume_at(progress.epoch, progress.step_in_epoch),
        )
        return self.run.watched(loader, directory)

    def begin_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Set what follows the epoch; cluster the embeddings if a refresh is due."""
        self.method.begin_epoch(epoch, self.recipe.train.epochs)
        if self.aux.boost is not None:
            self.aux.boost.begin_epoch(epoch)
        if self.harmonizing is not None:
            self.harmonizing.begin_epoch(epoch, global_step, logger)

    def loss(self, batch: PretrainBatch, step: StepInfo) -> Metrics:
        """SSL loss and GH term of a micro-batch, and the health of its embeddings when logged."""
        views, index, harmonizing = self._augment(batch), batch.index, self.harmonizing
        weights = None if harmonizing is None else harmonizing.gh.weights(index)
        bf16 = self.recipe.train.precision == "bf16"
        with torch.autocast(index.device.type, torch.bfloat16, enabled=bf16):
            output = self.run.model(views, weights)
        norm = embedding_norm(*output.embeddings, gathered=step.should_log)
        metrics = {"loss": output.loss, "ssl": output.loss, "embedding_norm": norm}
        if harmonizing is not None:
            metrics |= harmonizing.term(output, step)
        if step.should_log:
            metrics |= batch_health(*output.embeddings)
        self.outputs.append((output.detach(), index))  # used after the step, dropped if skipped
        return metrics

    def _augment(self, batch: PretrainBatch) -> list[Tensor]:
        """Two full views and the local views, each (N, 3, H, W)."""
        augment, boost = self.recipe.data.augment, self.aux.boost
        strength = None if boost is None else boost.strength(batch.index)
        ops = 1 if self.recipe.boost is None else self.recipe.boost.ops
        normalize = Preprocessing.of(self.method.backbone).normalize
        views = augment_views(
            batch.crops, batch.params, augment, strength=strength, ops=ops, normalize=normalize
        )
        if augment.local_crops:
            size, local = batch.crops.shape[-1], (batch.local_crops, batch.local_params)
            views += augment_views(
                *local, augment, full_size=size, strength=strength, ops=ops, normalize=normalize
            )
        if self.recipe.train.channels_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        return views

    def discard_step(self) -> None:
        """Drop the outputs of a skipped step."""
        self.outputs.clear()
        self.method.discard_step()

    def after_step(self, step: StepInfo) -> Metrics:
        """Move teachers; remember the embeddings by index, for GH and the monitors."""
        self.method.after_step(step.progress)
        metrics: Metrics = {}
        for output, index in self.outputs:
            metrics = self.aux.update(output, index, logged=step.should_log)
        self.outputs.clear()
        return metrics

    def alarm(self, metrics: dict[str, float]) -> str | None:
        """A warning if the embeddings collapse, or GH harms."""
        warnings = self.aux.alarm(metrics), self.aux.harm(metrics) if self.harmonizing else None
        return " ".join(filter(None, warnings)) or None

    def end_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Log what the labels, where known, say of the embeddings."""
        if logger.active and self.aux.labeled is not None:
            values = self.aux.labeled.report(self.aux.harmonizer)
            logger.log_event("health", global_step, epoch, values)
