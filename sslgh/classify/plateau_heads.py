"""Heads with an embedding layer, trained by Adam until their loss falls no more.

Their loss has many optima and is that of a batch, since the embedding term compares the images of a batch: no
gradient becomes 0. The mean loss of a round of steps is compared with the best before it instead.

Shapes: S seeds, H heads, N samples, B batch.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from sslgh.classify.adam_heads import (
    classifiers,
    group_margins,
    head_optimizer,
    heads_loss,
    initial_heads,
    shuffled_orders,
)
from sslgh.classify.ensemble import Classifier, Head
from sslgh.classify.train_heads import Problem, check_diverged


@dataclass(frozen=True)
class Plateau:
    """When a head has converged: its learning rate falls at every plateau, and ends below ``lr_end``.

    Attributes:
        width: D of the embedding layer; at most F.
        batch_size: Samples of one step; the last of an epoch may be smaller.
        round_steps: Steps of a round, after which the mean loss is compared with the best of the rounds before.
        improvement: Share of the best by which a round must be better; otherwise it is a plateau.
        lr: First learning rate.
        fall: Factor of the learning rate at a plateau.
        lr_end: A head whose learning rate falls below it has converged.
        max_rounds: A head that has not converged after that many raises a ``ConvergenceWarning``.
    """

    width: int = 128
    batch_size: int = 128
    round_steps: int = 50
    improvement: float = 1e-3
    lr: float = 1e-2
    fall: float = 0.25
    lr_end: float = 1e-4
    max_rounds: int = 200


def plateau_heads(
    problem: Problem, group: Sequence[Head], settings: Plateau
) -> dict[Head, Classifier]:
    """Train heads of one shape on standardized features; no head or seed depends on another.

    Raises:
        DivergedError: If a loss is not finite.
    """
    counts, features = problem.counts.float(), problem.features.float()
    problem = replace(problem, counts=counts, features=features)
    model = initial_heads(problem, group, settings.width)
    margins = group_margins(problem, group, deferred=True)
    rates = model.weight.new_full((problem.seeds, len(group)), settings.lr)
    optimizer = head_optimizer(group, model, lr=rates, not_decayed={"bias"})
    batches = _batches(problem, settings.batch_size)
    best = torch.full_like(rates, torch.inf)
    disable = None if problem.progress else True  # None: no bar in a log file
    rounds = range(settings.max_rounds)
    for _ in tqdm(rounds, desc="embedding heads", unit="round", disable=disable, leave=False):
        total = torch.zeros_like(best)
        for rows in islice(batches, settings.round_steps):
            loss = heads_loss(problem, group, model, margins, rows)
            gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
            optimizer.step(gradients)
            total += loss.detach()
        mean = total / settings.round_steps
        check_diverged(mean, group, "tau or weight_decay")
        plateau = mean > best * (1 - settings.improvement)
        rates = torch.where(plateau, rates * settings.fall, rates)
        rates = rates.where(rates >= settings.lr_end, 0)
        if not rates.any():
            break
        best = torch.minimum(best, mean)
        optimizer.set_rates(rates)
    else:
        _warn(group, rates, settings)
    return {
        head: Classifier(*(part.double() for part in trained if part is not None))
        for head, trained in classifiers(group, model).items()
    }


def _batches(problem: Problem, batch_size: int) -> Iterator[Tensor]:
    """Rows (S, B) of step after step, without end."""
    orders = shuffled_orders(problem.labels, seeds=problem.seeds)
    return chain.from_iterable(torch.split(order, batch_size, dim=1) for order in orders)


def _warn(group: Sequence[Head], rates: Tensor, settings: Plateau) -> None:
    moving = [head for head, rate in zip(group, rates.T, strict=True) if rate.any()]
    warnings.warn(
        f"{len(moving)} of {len(group)} heads, {moving[0]} among them, were still improving after "
        f"{settings.max_rounds * settings.round_steps} steps and are not converged",
        ConvergenceWarning,
        stacklevel=4,
    )
