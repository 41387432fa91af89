"""Choice between heads on the training data, never on a test set.

Shapes: N samples, F features, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslgh.classify.ensemble import Head
from sslgh.classify.train_heads import Problem, Training, check_problem
from sslgh.functional.groups import class_accuracy

NEVER = -1


def select_heads(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    candidates: Mapping[str, Sequence[Head]],
    training: Training,
    folds: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Head]:
    """The best of each list by cross-validation: balanced accuracy of out-of-fold predictions.

    Every head decides as its objective does. A list of one is not trained. All candidates of a
    fold are trained together.

    Args:
        features: Shape (N, F), finite.
        labels: Shape (N,), integers in [0, C).
        num_classes: C.
        candidates: Lists of heads to choose from, by any name.
        training: Way of training.
        folds: Parts; see :func:`stratified_folds`.
        seed: Seed of the folds; heads are trained with seed 0.
        progress: Show progress bars.

    Returns:
        One head of each list; of equals the first.

    Raises:
        ValueError: If a list is empty, every class has a single sample, or the problem is not one
            for :func:`train_heads`.
        DivergedError: If the training of a head diverged.
    """
    heads = list(dict.fromkeys(head for choice in candidates.values() for head in choice))
    check_problem(features, labels, num_classes, heads)
    if empty := [name for name, choice in candidates.items() if not choice]:
        raise ValueError(f"there is no head to choose for '{empty[0]}'")
    contested = [choice for choice in candidates.values() if len(choice) > 1]
    compared = list(dict.fromkeys(head for choice in contested for head in choice))
    if not compared:
        return {name: choice[0] for name, choice in candidates.items()}
    part = stratified_folds(labels, folds, seed=seed)
    predictions = {head: torch.full_like(labels, NEVER) for head in compared}
    for fold in sorted(set(part[part != NEVER].tolist())):
        out = part == fold
        counts = torch.bincount(labels[~out], minlength=num_classes)
        problem = Problem(features[~out], labels[~out].long(), counts, progress=progress)
        trained = training.fit(problem, compared)
        for head in compared:
            predictions[head][out] = trained.predict(head, features[out])[0]
    held_out = part != NEVER
    accuracy = {
        head: _balanced_accuracy(prediction[held_out], labels[held_out], num_classes)
        for head, prediction in predictions.items()
    }
    return {
        name: max(choice, key=lambda head: accuracy.get(head, 0.0))
        for name, choice in candidates.items()
    }


def stratified_folds(labels: Tensor, folds: int, *, seed: int = 0) -> Tensor:
    """The fold of each sample, shape (N,); -1 for the only sample of a class: it is never held out.

    The samples of a class are shuffled and dealt to the folds in turn, from class to class without
    a break: fold sizes differ by one at most. A class with fewer samples than folds is held out in
    as many folds, one sample each.

    Args:
        labels: Shape (N,).
        folds: At least 2.
        seed: Seed of the shuffling.

    Raises:
        ValueError: If ``folds`` is below 2 or no class has two samples.

    Examples:
        >>> part = stratified_folds(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 2)
        >>> part[-1], part[:4].sort().values, part[4:6].sort().values
        (tensor(-1), tensor([0, 0, 1, 1]), tensor([0, 1]))
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    counts = torch.bincount(labels)
    if counts.max() < 2:
        raise ValueError("nothing can be held out: every class has a single sample")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    dealt = shuffled[labels[shuffled].argsort(stable=True)]
    dealt = dealt[counts[labels[dealt]] > 1]
    part = torch.full_like(labels, NEVER)
    part[dealt] = torch.arange(len(dealt), device=labels.device) % folds
    return part


def _balanced_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean recall of the classes that were held out."""
    recalls = class_accuracy(predictions, labels, num_classes)
    return recalls[~recalls.isnan()].mean().item()
