"""The training loop: epochs, steps, checkpoints and signals, whatever is trained."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sslgh.data import micro_batch_weights
from sslgh.distributed import any_rank
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.checkpoint import Progress, copy_to_cpu
from sslgh.engine.checkpoint_writer import CheckpointWriter
from sslgh.engine.finite import MAX_SKIPPED, BufferSnapshot, NotFiniteError
from sslgh.engine.fsdp import local_shard, unshard_
from sslgh.engine.launch import Stopped, StopRequest, determinism, run_on_main
from sslgh.engine.logger import MetricLogger
from sslgh.engine.optim import learning_rate
from sslgh.engine.run import Run, releasing_lock, within
from sslgh.engine.step import Moment, Task, Values, take_step
from sslgh.recipe import Recipe


def train(
    run: Run, task: Task, batches: BrokenImages, progress: Progress, steps_per_epoch: int
) -> None:
    """All epochs from ``progress`` on; the module ends with whole weights on every process.

    Raises:
        NotFiniteError: If a number is nan or infinite, and steps are not to be skipped or too many were.
        DataError: If too many images cannot be read.
        OSError: If the last checkpoint cannot be written.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.
    """
    recipe, main = run.recipe, run.accelerator.is_main_process
    progress = within(progress, steps_per_epoch)
    journal = MetricLogger(
        recipe.directory,
        active=main,
        steps=recipe.train.epochs * steps_per_epoch,
        start=progress.global_step,
        images_per_step=recipe.train.batch_size,
        within_epoch=progress.step_in_epoch > 0,
    )
    with (
        releasing_lock(run),
        journal,
        _writer(run) as writer,
        StopRequest() as stop,
        _ended(batches),
        determinism(recipe.train.deterministic),
    ):
        loop = _Loop(run, task, batches, journal, writer, stop, skipped=progress.skipped_in_a_row)
        for epoch in range(progress.epoch, recipe.train.epochs):
            journal.running(epoch, progress.global_step)
            if task.begin_epoch is not None:
                task.begin_epoch(epoch, progress.global_step, journal)
            run.model.train()
            for _ in range(progress.step_in_epoch, steps_per_epoch):
                progress = loop.step(progress, steps_per_epoch)
            if _checkpoint_due(recipe, epoch):
                if task.end_epoch is not None:
                    task.end_epoch(epoch, progress.global_step, journal)
                loop.save(Progress(epoch + 1, 0, progress.global_step))
            progress = Progress(epoch + 1, 0, progress.global_step)
        loop.finish_writing()
        # What comes after, a probe or another recipe, must not begin in a job that is to end.
        if any_rank(stop.asked, run.accelerator.device):
            raise Stopped("stopped after the last step; run the same command to finish")
    unshard_(run.module)


class _Loop:
    """What the steps of a run share.

    Attributes:
        skipped: Steps in a row that were passed over.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        batches: BrokenImages,
        journal: MetricLogger,
        writer: CheckpointWriter | None,
        stop: StopRequest,
        *,
        skipped: int = 0,
    ) -> None:
        self.run, self.task, self.batches = run, task, batches
        self.journal, self.writer, self.stop = journal, writer, stop
        skips = run.recipe.train.not_finite == "skip"
        self.backup = BufferSnapshot(run.module) if skips else None
        self.skipped = skipped

    def step(self, progress: Progress, steps_per_epoch: int) -> Progress:
        """Take the next step, tell of it, and leave if that was asked for.

        Raises:
            Stopped: After saving.
        """
        run = self.run
        rate = _learning_rate(run, progress.global_step, steps_per_epoch)
        moment = _moment(run, progress.epoch, progress.global_step, steps_per_epoch)
        taken = take_step(
            run, self.task, self.batches, moment, rate, stop=self.stop, backup=self.backup
        )
        progress = Progress(progress.epoch, progress.step_in_epoch + 1, moment.total)
        self.skipped = 0 if taken.fault is None else self.skipped + 1
        if taken.fault is not None:
            self._skip_or_stop(progress, taken.fault)
        elif moment.logged:
            self._log(progress, taken.values, rate)
        self.journal.advance()
        if taken.broken:
            self._report_broken(progress)
        self._say_what_was_not_written()
        if taken.stop:
            self.save(progress)
            self.finish_writing()
            raise Stopped(
                f"stopped after step {progress.global_step}; run the same command to go on"
            )
        return progress

    def _log(self, progress: Progress, values: Values, rate: float) -> None:
        numbers = _numbers(self.run, values, rate)
        self.journal.metrics(progress.global_step, progress.epoch, numbers)
        sentence = self.task.watch(numbers) if self.task.watch is not None else None
        if sentence is not None:
            self.journal.info(sentence)
            self.journal.log_event(
                "alarm", progress.global_step, progress.epoch, {"text": sentence}
            )

    def _skip_or_stop(self, progress: Progress, fault: str) -> None:
        """What the recipe says of a step whose numbers are not finite.

        Raises:
            NotFiniteError: On every process.
        """
        where = f"{fault} in step {progress.global_step} (epoch {progress.epoch})"
        if self.run.recipe.train.not_finite == "stop":
            raise NotFiniteError(
                f"{where}; lower optim.lr, set optim.clip, or pass over such steps with train.not_finite: skip"
            )
        self.journal.info(f"{where}: skipped")
        self.journal.log_event("skipped", progress.global_step, progress.epoch, {"text": fault})
        if self.skipped >= MAX_SKIPPED:
            raise NotFiniteError(
                f"{where}, as in the {MAX_SKIPPED - 1} steps before it; lower optim.lr or set optim.clip, and go "
                "on from the last checkpoint"
            )

    def _report_broken(self, progress: Progress) -> None:
        """Collective: call it on every rank.

        Raises:
            DataError: On every process, if there are too many.
        """
        sentence = self.batches.sync(self.run.accelerator)
        if sentence is not None:
            self.journal.info(sentence)
            self.journal.log_event(
                "quarantine", progress.global_step, progress.epoch, {"text": sentence}
            )

    def _say_what_was_not_written(self) -> None:
        for sentence in self.writer.sentences() if self.writer is not None else ():
            self.journal.info(sentence)

    def save(self, progress: Progress) -> None:
        """Hand a copy of the run to the writer. Collective: call it on every rank.

        Raises:
            NotFiniteError: If a weight is not finite: an optimizer may overflow where no gradient did.
            DataError: If too many images cannot be read.
        """
        run, writer = self.run, self.writer
        self._report_broken(progress)
        tensors = [*run.module.state_dict().values()]
        tensors += [] if run.aux_state is None else [*run.aux_state.state_dict().values()]
        broken = any(not bool(local_shard(tensor).isfinite().all()) for tensor in tensors)
        if any_rank(broken, run.accelerator.device):
            raise NotFiniteError(
                f"a weight is not finite after step {progress.global_step}; lower optim.lr or set optim.clip"
            )
        if writer is not None or run.accelerator.is_fsdp2:
            snapshot = copy_to_cpu(
                progress._replace(skipped_in_a_row=self.skipped),
                run.setting,
                module=run.module,
                aux_state=run.aux_state,
                optimizer=run.optimizer,
            )
            if writer is not None:
                writer.submit(snapshot)

    def finish_writing(self) -> None:
        """Wait for the last checkpoint. Collective: call it on every rank.

        Raises:
            OSError: On every process, if it cannot be written.
        """
        writer = self.writer
        run_on_main(lambda: None if writer is None else writer.finish(), self.run.accelerator)
        self._say_what_was_not_written()


def _moment(run: Run, epoch: int, taken: int, steps_per_epoch: int) -> Moment:
    settings = run.recipe.train
    steps, total = settings.epochs * steps_per_epoch, taken + 1
    shares = micro_batch_weights(
        len(run.images),
        settings.batch_size,
        accumulation=settings.accumulation,
        step=taken - epoch * steps_per_epoch,
    )
    logged = total % settings.log_every == 0 or total == steps
    return Moment(epoch, total, total / steps, logged, shares)


@contextmanager
def _ended(batches: BrokenImages) -> Iterator[None]:
    """Loader workers end with the loop, however it is left."""
    try:
        yield
    finally:
        batches.close()


@contextmanager
def _writer(run: Run) -> Iterator[CheckpointWriter | None]:
    """The writer of process 0; None elsewhere."""
    train = run.recipe.train
    if not run.accelerator.is_main_process:
        yield None
        return
    with CheckpointWriter(
        run.checkpoints, keep_last=train.keep_last, keep_every=train.keep_every
    ) as writer:
        yield writer


def dry_run_step(run: Run, task: Task, batches: BrokenImages, steps_per_epoch: int) -> None:
    """Take one step and say what the run would be; nothing is written.

    Raises:
        NotFiniteError: If a number is nan or infinite.
    """
    recipe = run.recipe
    started = time.perf_counter()
    run.model.train()
    with _ended(batches), determinism(recipe.train.deterministic):
        moment = _moment(run, 0, 0, steps_per_epoch)
        taken = take_step(run, task, batches, moment, _learning_rate(run, 0, steps_per_epoch))
    if taken.fault is not None:
        raise NotFiniteError(f"{taken.fault} in the first step")
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in run.module.parameters())
    run.accelerator.print(
        f"{recipe.name}: {len(run.images)} images, {parameters / 1e6:.2f} M parameters, "
        f"{recipe.train.epochs} epochs of {steps_per_epoch} steps; the first step took {seconds:.1f} s, "
        f"loss {taken.values['loss'].item():.4g}; dry run, nothing written"
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


def _numbers(run: Run, values: Values, rate: float) -> dict[str, float]:
    """Means over the processes, on the host. Collective: call it on every rank."""
    means = run.accelerator.reduce(torch.stack(list(values.values())), "mean")
    return dict(zip(values, means.tolist(), strict=True)) | {"lr": rate}


def _checkpoint_due(recipe: Recipe, epoch: int) -> bool:
    settings, ended = recipe.train, epoch + 1
    kept = settings.keep_every is not None and ended % settings.keep_every == 0
    return ended % settings.checkpoint_every == 0 or ended == settings.epochs or kept
