"""The learning rate as a pure function of the optimizer step: nothing to prepare or resume."""

import math

from sslgh.recipe import Optim


def learning_rate(
    step: int, optim: Optim, *, steps_per_epoch: int, epochs: int, gh_start: int | None
) -> float:
    """Learning rate of an optimizer step.

    Linear warm-up from 0, then a cosine to ``lr_end``; or, for ``gh-two-stage`` (the GH code),
    a cosine to ``lr_mid`` at the step where GH begins and a second one from there to ``lr_end``;
    or, for ``step``, the peak times ``decay`` at each milestone.

    Args:
        step: From 0.
        optim: The recipe's settings.
        steps_per_epoch: Optimizer steps an epoch.
        epochs: Of the whole run.
        gh_start: Epoch in which GH begins; for ``gh-two-stage``.

    Examples:
        >>> optim = Optim(lr=1.0, warmup_epochs=1, lr_end=0.0)
        >>> at = lambda step: learning_rate(step, optim, steps_per_epoch=2, epochs=3, gh_start=None)
        >>> [round(at(step), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warmup, total = optim.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in optim.milestones)
        return optim.lr * float(optim.decay**passed)
    if optim.schedule == "cosine" or gh_start is None:
        return _cosine(step, warmup, total, optim.lr, optim.lr_end)
    middle = gh_start * steps_per_epoch
    if step < middle:
        return _cosine(step, warmup, middle, optim.lr, optim.lr_mid)
    return _cosine(step, middle, total, optim.lr_mid, optim.lr_end)


def _cosine(step: int, start: int, stop: int, high: float, low: float) -> float:
    progress = (step - start) / max(stop - start, 1)
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2
