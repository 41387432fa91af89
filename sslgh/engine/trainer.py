"""The training loop and its step, for every stage of training.

A stage, `Pretraining` or `Finetuning`, says what is computed; this file says when.
"""

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from sslgh.distributed import any_of, any_rank, gather_full, local_shard, unshard_
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.checkpoint import Progress, copy_to_cpu
from sslgh.engine.checkpoint_manager import CheckpointWriter
from sslgh.engine.exit_codes import NotFiniteError, Stopped
from sslgh.engine.launch import StopRequest, determinism, run_on_main
from sslgh.engine.logger import MetricLogger
from sslgh.engine.optim import learning_rate, set_learning_rate
from sslgh.engine.run import Run
from sslgh.recipe.schema import Train

Metrics = dict[str, Tensor]
# The metrics that must be finite, in the order of cause and effect.
WATCHED = {
    "embedding_norm": "an embedding",
    "ssl": "the loss of the method",
    "gh": "the GH term",
    "logit": "the loss of the logits",
    "embedding": "the loss of the embeddings",
    "loss": "the loss",
}
# A run that skips this many steps in a row will not recover.
MAX_SKIPPED = 10
STOP_MESSAGE = "stopped after step {}; run the same command to resume"


class StepInfo(NamedTuple):
    """An optimizer step that is about to be taken.

    Attributes:
        epoch: Epoch, from 0.
        global_step: Optimizer steps of the run, this one included.
        progress: Share of the run's steps, this one included, in (0, 1].
        should_log: Whether the metrics of this step are logged.
        lr: Learning rate.
        seed: Seed of dropout and stochastic depth, a function of (run's seed, step, rank).
        micro_batch_weights: Share of the step's images in each micro-batch.
    """

    epoch: int
    global_step: int
    progress: float
    should_log: bool
    lr: float
    seed: int
    micro_batch_weights: tuple[float, ...] = (1.0,)


class StepResult(NamedTuple):
    """A step that was taken; all but the metrics is the same on all ranks.

    Attributes:
        metrics: Metrics of the last micro-batch and of the step.
        skipped: Which value was NaN or infinite, so that the optimizer step was skipped; or None.
        stop: Whether a rank was asked to stop.
        broken: Whether a rank has broken images to report.
    """

    metrics: Metrics
    skipped: str | None
    stop: bool
    broken: bool


class Stage(Protocol):
    """What a stage of training computes, in the order of the calls."""

    @property
    def run(self) -> Run:
        """The objects of the run."""

    def begin_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Prepare an epoch; called again when a run is resumed within it."""

    def loss(self, batch: Any, step: StepInfo) -> Metrics:
        """Forward of a micro-batch: its metrics, ``loss`` among them."""

    def discard_step(self) -> None:
        """Drop the state buffered by `loss`: the step is skipped."""

    def after_step(self, step: StepInfo) -> Metrics:
        """Update what follows the optimizer step; further metrics."""

    def alarm(self, metrics: dict[str, float]) -> str | None:
        """A warning about logged metrics, or None."""

    def end_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Log the end of an epoch that a checkpoint follows."""


def train(stage: Stage, batches: BrokenImages, progress: Progress) -> None:
    """Train from ``progress`` to the last epoch; full weights on every rank then. Collective: call it on every rank.

    Raises:
        NotFiniteError, DataError, OSError: If a value is NaN, too many images are broken, or saving fails.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.
    """
    run, recipe = stage.run, stage.run.recipe
    logger = MetricLogger(
        recipe.directory,
        active=run.accelerator.is_main_process,
        steps=recipe.train.epochs * run.steps_per_epoch,
        epochs=recipe.train.epochs,
        start=progress.global_step,
        images_per_step=recipe.train.batch_size,
        within_epoch=progress.step_in_epoch > 0,
    )
    writer = CheckpointWriter(
        run.checkpoints,
        logger.info,
        keep_last=recipe.train.keep_last,
        keep_every=recipe.train.keep_every,
        active=run.accelerator.is_main_process,
    )
    with (
        closing(run),
        logger,
        writer,
        StopRequest() as stop,
        closing(batches),
        determinism() if recipe.train.deterministic else nullcontext(),
    ):
        for epoch in range(progress.epoch, recipe.train.epochs):
            logger.running(epoch, progress.global_step)
            stage.begin_epoch(epoch, progress.global_step, logger)
            run.model.train()
            while progress.step_in_epoch < run.steps_per_epoch:
                step = step_info(run, progress)
                result = train_step(stage, batches, step, stop)
                skipped = progress.skipped_in_a_row + 1 if result.skipped else 0
                progress = Progress(epoch, progress.step_in_epoch + 1, step.global_step, skipped)
                if result.skipped is not None:
                    log_skipped_step(run, step, result.skipped, skipped, logger)
                elif step.should_log:
                    log_metrics(stage, step, result.metrics, logger)
                logger.advance()
                if result.broken:
                    report_broken_images(run, batches, progress, logger)
                if result.stop:
                    save(run, batches, progress, logger, writer)
                    run_on_main(writer.finish, run.accelerator)
                    raise Stopped(STOP_MESSAGE.format(step.global_step))
            progress = progress._replace(epoch=epoch + 1, step_in_epoch=0)
            if _is_checkpoint_due(recipe.train, epoch + 1):
                stage.end_epoch(epoch, progress.global_step, logger)
                save(run, batches, progress, logger, writer)
        run_on_main(writer.finish, run.accelerator)
        # A probe or the next recipe must not begin in a job that is about to end.
        if any_rank(stop.asked, run.accelerator.device):
            raise Stopped("stopped after the last step; run the same command to finish")
    unshard_(run.module)


def step_info(run: Run, progress: Progress) -> StepInfo:
    """The step that follows ``progress``."""
    recipe, rank = run.recipe, run.accelerator.process_index
    steps, global_step = recipe.train.epochs * run.steps_per_epoch, progress.global_step + 1
    return StepInfo(
        epoch=progress.epoch,
        global_step=global_step,
        progress=global_step / steps,
        should_log=global_step % recipe.train.log_every == 0 or global_step == steps,
        lr=learning_rate(
            progress.global_step,
            recipe.optim,
            steps_per_epoch=run.steps_per_epoch,
            epochs=recipe.train.epochs,
            gh_start=recipe.gh_start,
        ),
        seed=recipe.seed + 1_000_003 * global_step + 7_919 * rank,
        micro_batch_weights=run.sampler.micro_batch_weights(progress.step_in_epoch),
    )


def train_step(
    stage: Stage, batches: BrokenImages, step: StepInfo, stop: StopRequest
) -> StepResult:
    """One optimizer step over all micro-batches. Collective: call it on every rank."""
    run, train, accelerator = stage.run, stage.run.recipe.train, stage.run.accelerator
    torch.manual_seed(step.seed)  # dropout is a function of (seed, step, rank): nothing to save
    set_learning_rate(run.optimizer, step.lr)
    run.optimizer.zero_grad()
    # A forward pass moves batch statistics and queues before its NaN is noticed.
    buffers = [b.clone() for b in run.module.buffers()] if train.not_finite == "skip" else []
    parts: list[Metrics] = []
    for weight in step.micro_batch_weights:
        last = len(parts) + 1 == len(step.micro_batch_weights)
        with nullcontext() if last else accelerator.no_sync(run.model):
            batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
            metrics = stage.loss(batch, step)
            accelerator.backward(weight * metrics["loss"])  # every image counts the same
        parts.append({name: value.detach() for name, value in metrics.items()})
    grad_norm = gradient_norm(run.model)
    reason = non_finite_reason(parts, grad_norm, run.model)
    report = batches.should_report(logged=step.should_log)
    # One collective per step, so that all ranks skip, stop and report together.
    flags = [reason is not None, stop.asked, report]
    skip, stopping, broken = any_of(flags, accelerator.device)
    if skip:
        for buffer, before in zip(run.module.buffers() if buffers else (), buffers, strict=True):
            buffer.copy_(before)
        stage.discard_step()
        return StepResult(
            parts[-1], reason or "a value of another rank is not finite", stopping, broken
        )
    if (limit := run.recipe.optim.clip) is not None:
        nn.utils.clip_grads_with_norm_(run.model.parameters(), limit, grad_norm)
    run.optimizer.step()
    metrics = parts[-1] | {"grad_norm": grad_norm} | stage.after_step(step)
    return StepResult(metrics, None, stopping, broken)


def gradient_norm(model: nn.Module) -> Tensor:
    """Norm of the whole gradient, shape (). Collective with FSDP."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return gather_full(nn.utils.get_total_norm(gradients))


def non_finite_reason(parts: Sequence[Metrics], grad_norm: Tensor, model: nn.Module) -> str | None:
    """Which value of a step's micro-batches is NaN or infinite, in words; None if none is. Waits for the device."""
    watched = [part[name].float() for part in parts for name in WATCHED if name in part]
    finite = bool(torch.stack([*watched, grad_norm.float()]).isfinite().all())
    return None if finite else _first_not_finite(parts, model)


def _first_not_finite(parts: Sequence[Metrics], model: nn.Module) -> str:
    for name, words in WATCHED.items():
        if any(name in part and not bool(part[name].isfinite()) for part in parts):
            return f"{words} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(local_shard(parameter.grad).isfinite().all()):
            return f"the gradient of {name.removeprefix('module.')} is not finite"
    return "the gradient is too long for its precision"


def log_metrics(stage: Stage, step: StepInfo, metrics: Metrics, logger: MetricLogger) -> None:
    """Log the mean of a step's metrics over the ranks. Collective: call it on every rank."""
    means = stage.run.accelerator.reduce(torch.stack(list(metrics.values())), "mean")
    numbers = dict(zip(metrics, means.tolist(), strict=True)) | {"lr": step.lr}
    logger.metrics(step.global_step, step.epoch, numbers)
    if (warning := stage.alarm(numbers)) is not None:
        logger.info(warning)
        logger.log_event("alarm", step.global_step, step.epoch, {"text": warning})


def log_skipped_step(
    run: Run, step: StepInfo, reason: str, skipped_in_a_row: int, logger: MetricLogger
) -> None:
    """Log why a step was skipped.

    Raises:
        NotFiniteError: If the recipe does not skip such steps, or `MAX_SKIPPED` were skipped in a row.
    """
    where = f"{reason} in step {step.global_step} (epoch {step.epoch})"
    if run.recipe.train.not_finite == "stop":
        raise NotFiniteError(
            f"{where}; lower optim.lr, set optim.clip, or skip such steps with train.not_finite: skip"
        )
    logger.info(f"{where}: skipped")
    logger.log_event("skipped", step.global_step, step.epoch, {"text": reason})
    if skipped_in_a_row >= MAX_SKIPPED:
        raise NotFiniteError(
            f"{where}, as in the {MAX_SKIPPED - 1} steps before it; lower optim.lr or set optim.clip, and "
            "resume from the last checkpoint"
        )


def report_broken_images(
    run: Run, batches: BrokenImages, progress: Progress, logger: MetricLogger
) -> None:
    """Log images found broken since the last report; raises as `BrokenImages.sync`. Collective: call it on every rank."""
    if (message := batches.sync(run.accelerator)) is not None:
        logger.info(message)
        logger.log_event("quarantine", progress.global_step, progress.epoch, {"text": message})


def save(
    run: Run,
    batches: BrokenImages,
    progress: Progress,
    logger: MetricLogger,
    writer: CheckpointWriter,
) -> None:
    """Hand a copy of the run's state to the checkpoint writer. Collective: call it on every rank.

    Raises:
        NotFiniteError: If a weight is NaN or infinite: an optimizer may overflow where no gradient did.
        DataError: If too many images are broken.
    """
    report_broken_images(run, batches, progress, logger)
    modules = [run.module] if run.aux_state is None else [run.module, run.aux_state]
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    overflow = any(not bool(local_shard(tensor).isfinite().all()) for tensor in tensors)
    if any_rank(overflow, run.accelerator.device):
        raise NotFiniteError(
            f"a weight is not finite after step {progress.global_step}; lower optim.lr or set optim.clip"
        )
    if writer.active or run.accelerator.is_fsdp2:  # with FSDP a copy is a collective
        writer.submit(
            copy_to_cpu(progress, run.environment, run.module, run.aux_state, run.optimizer)
        )


def _is_checkpoint_due(train: Train, epochs: int) -> bool:
    """Whether a checkpoint follows the first ``epochs`` epochs."""
    kept = train.keep_every is not None and epochs % train.keep_every == 0
    return epochs % train.checkpoint_every == 0 or epochs == train.epochs or kept


def dry_run(stage: Stage, batches: BrokenImages) -> None:
    """Take one step and print what the run would be; nothing is written.

    Raises:
        NotFiniteError: If a value is NaN or infinite.
    """
    run, recipe = stage.run, stage.run.recipe
    started = time.perf_counter()
    run.model.train()
    with closing(batches), determinism() if recipe.train.deterministic else nullcontext():
        result = train_step(stage, batches, step_info(run, Progress()), StopRequest())
    if result.skipped is not None:
        raise NotFiniteError(f"{result.skipped} in the first step")
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in run.module.parameters())
    run.accelerator.print(
        f"{recipe.name}: {len(run.images)} images, {parameters / 1e6:.2f} M parameters, "
        f"{recipe.train.epochs} epochs of {run.steps_per_epoch} steps; the first step took {seconds:.1f} s, "
        f"loss {result.metrics['loss'].item():.4g}; dry run, nothing written"
    )
