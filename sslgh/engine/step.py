"""One step of training: the parts of a global batch, a verdict on their numbers, the optimizer."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslgh.distributed import any_of
from sslgh.engine.broken_images import Batch, BrokenImages
from sslgh.engine.finite import BufferSnapshot, gradient_norm, non_finite_reason
from sslgh.engine.launch import StopRequest
from sslgh.engine.logger import MetricLogger
from sslgh.engine.optim import set_learning_rate
from sslgh.engine.run import Run

Values = dict[str, Tensor]


class Moment(NamedTuple):
    """A step of the run, as a task sees it.

    Attributes:
        epoch: From 0.
        total: Optimizer steps of the run, this one included.
        done: Share of the run's steps, this one included, in (0, 1].
        logged: Whether the numbers of this step are written down.
        shares: The share of the step's images in each of its parts.
    """

    epoch: int
    total: int
    done: float
    logged: bool
    shares: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Task:
    """What a kind of training does at each turn of the loop.

    Attributes:
        part: Forward of one part of a batch; its numbers, ``loss`` among them.
        begin_epoch: Called with epoch, step and journal before the first step of an epoch, and
            again when a run is resumed within it.
        after_step: Called after the optimizer's step, and not for a step that was skipped; more
            numbers.
        skip_step: Called instead of it for a step that was skipped.
        end_epoch: Called with epoch, step and journal before the checkpoint of an epoch.
        watch: Looks at the numbers that are written down; a sentence to say, or None.
    """

    part: Callable[[Batch, Moment], Values]
    begin_epoch: Callable[[int, int, MetricLogger], None] | None = None
    after_step: Callable[[Moment], Values] | None = None
    skip_step: Callable[[], None] | None = None
    end_epoch: Callable[[int, int, MetricLogger], None] | None = None
    watch: Callable[[dict[str, float]], str | None] | None = None


class Taken(NamedTuple):
    """A step that was taken; all but the numbers is alike on all processes.

    Attributes:
        values: Its numbers.
        fault: What of it was not finite, so that nothing was learned; None where all was.
        stop: Whether a process was asked to stop.
        broken: Whether a process met images that cannot be read.
    """

    values: Values
    fault: str | None
    stop: bool
    broken: bool


def take_step(
    run: Run,
    task: Task,
    batches: BrokenImages,
    moment: Moment,
    rate: float,
    *,
    stop: StopRequest | None = None,
    backup: BufferSnapshot | None = None,
) -> Taken:
    """One optimizer step over all parts of a global batch. Collective: call it on every rank.

    Args:
        run: What is trained.
        task: What its parts are.
        batches: One for each part.
        moment: Which step it is.
        rate: Its learning rate.
        stop: Whether this process was asked to stop.
        backup: Puts the buffers back where a number is not finite; None: they are left.

    Returns:
        The numbers of the last part, and what the processes agreed on.
    """
    recipe, accelerator = run.recipe, run.accelerator
    # Dropout and stochastic depth draw from (seed, step, process): no random state to save.
    torch.manual_seed(recipe.seed + 1_000_003 * moment.total + 7_919 * accelerator.process_index)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.zero_grad()
    if backup is not None:
        backup.keep()
    parts = []
    for part in range(recipe.train.accumulation):
        last = part == recipe.train.accumulation - 1
        with nullcontext() if last else accelerator.no_sync(run.model):
            parts.append(_part(run, task, next(batches), moment, moment.shares[part]))
    norm = gradient_norm(run.model)
    fault = non_finite_reason(parts, norm, run.model)
    asked = stop is not None and stop.asked
    # One collective a step, so that all processes skip, stop and report together.
    report = batches.exhausted or (moment.logged and batches.has_new)
    flags = [fault is not None, asked, report]
    bad, stopping, broken = any_of(flags, accelerator.device)
    if bad:
        if backup is not None:
            backup.restore()
        if task.skip_step is not None:
            task.skip_step()
        fault = fault or "a number of another process is not finite"
        return Taken(parts[-1], fault, stopping, broken)
    if recipe.optim.clip is not None:
        nn.utils.clip_grads_with_norm_(run.model.parameters(), recipe.optim.clip, norm)
    run.optimizer.step()
    more = task.after_step(moment) if task.after_step is not None else {}
    return Taken(parts[-1] | {"grad_norm": norm} | more, None, stopping, broken)


def _part(run: Run, task: Task, batch: Batch, moment: Moment, share: float) -> Values:
    device = run.accelerator.device
    batch = type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
    values = task.part(batch, moment)
    # Parts may differ by an image, and each image counts alike.
    run.accelerator.backward(share * values["loss"])
    return {name: value.detach() for name, value in values.items()}
