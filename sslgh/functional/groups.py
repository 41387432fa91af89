"""Accuracy, F1 and tightness of classes, and means over the many / medium / few-shot groups of classes.

Shapes: N samples, C classes, D embedding width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.checks import check_labels, in_float32, shapes

Convention = Literal["thresholds", "thirds"]
GROUPS = ("many", "medium", "few")
# Degrees of freedom of the spread between groups: the tables of the GH paper fit 1, its code computes 0.
STD_DDOF = 1


def class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Share of each class's images that are predicted as it, shape (C,), float64; nan for a class without images.

    ``predictions`` and ``labels``: classes in [0, C), shape (N,); ValueError if the shapes differ.

    Examples:
        >>> class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        tensor([0.5000, 1.0000,    nan], dtype=torch.float64)
    """
    _check(predictions, labels)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    return right.double() / torch.bincount(labels, minlength=num_classes)


def class_f1(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Harmonic mean of precision and recall of each class, 2 TP / (2 TP + FP + FN).

    Args:
        predictions: Shape (N,), predicted classes in [0, C).
        labels: Shape (N,), true classes in [0, C).
        num_classes: C.

    Returns:
        Shape (C,), float64; nan for a class that is neither a label nor a prediction, which scikit-learn's
        ``f1_score(average="macro")`` leaves out of the mean too.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> class_f1(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        tensor([0.6667, 0.6667,    nan], dtype=torch.float64)
    """
    _check(predictions, labels)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    asked, given = (torch.bincount(rows, minlength=num_classes) for rows in (labels, predictions))
    return 2 * right.double() / (asked + given)


def shot_groups(
    counts: Tensor, *, convention: Convention = "thresholds", test_counts: Tensor | None = None
) -> dict[str, Tensor]:
    """Which classes are many-, medium- and few-shot: masks (C,); every class is in exactly one.

    ``thresholds``: more than 100, 20 to 100, fewer than 20 training images (Liu et al., arXiv:1904.05160).
    ``thirds``: the classes by size, then by label, cut into three parts (CIFAR in the GH code: 34, 33, 33).
    With ``test_counts``, test images of each class, one without any images is a gap in the labels, in no group.

    Raises:
        ValueError: If ``counts`` is not (C,), ``test_counts`` has another shape, or the convention is unknown.

    Examples:
        >>> shot_groups(torch.tensor([5, 100, 101, 20]))["medium"]
        tensor([False,  True, False,  True])
    """
    if counts.ndim != 1:
        raise ValueError(f"counts must be (C,), got {shapes(counts)}")
    held = torch.ones_like(counts, dtype=torch.bool)
    if test_counts is not None:
        _check_counts(counts, test_counts)
        held = (counts > 0) | (test_counts.to(counts.device) > 0)
    if convention != "thresholds":
        return _thirds(counts, held, convention)
    many, few = counts > 100, (counts < 20) & held
    return {"many": many, "medium": ~(many | few) & held, "few": few}


def _check_counts(counts: Tensor, test_counts: Tensor) -> None:
    if test_counts.shape != counts.shape:
        found = shapes(counts, test_counts)
        raise ValueError(f"counts and test_counts must share a shape (C,), got {found}")


def _thirds(counts: Tensor, held: Tensor, convention: str) -> dict[str, Tensor]:
    if convention != "thirds":
        raise ValueError(f"convention must be 'thresholds' or 'thirds', got '{convention}'")
    order = counts.argsort(descending=True, stable=True)
    parts = order[held[order]].tensor_split(3)
    return {
        name: torch.zeros_like(counts, dtype=torch.bool).index_fill(0, part, True)
        for name, part in zip(GROUPS, parts, strict=True)
    }


def group_means(values: Tensor, groups: dict[str, Tensor]) -> dict[str, float | None]:
    """Mean of values (C,) over the classes of each group, nan left out; None without a value. Waits for the device.

    Examples:
        >>> values = torch.tensor([1.0, 0.5, float("nan")])
        >>> group_means(values, {"many": torch.tensor([True, True, True]), "few": values.isnan()})
        {'many': 0.75, 'few': None}
    """
    return {name: _mean(values[mask]) for name, mask in groups.items()}


def group_metrics(
    accuracy: Tensor, groups: dict[str, Tensor], *, test_counts: Tensor
) -> dict[str, float | None]:
    """Metrics by which a long-tailed result is reported.

    Args:
        accuracy: Shape (C,), as `class_accuracy` gives it; a nan class is left out.
        groups: Masks of shape (C,), as `shot_groups` gives them.
        test_counts: Shape (C,), test images of each class.

    Returns:
        ``many``, ``medium``, ``few``: mean over the classes of the group, None when it is empty. ``std``: standard
        deviation of the three, `STD_DDOF` degrees of freedom taken off, None when one is empty. ``average``: mean
        over all classes. ``balanced_error``: 1 - average (LA, arXiv:2007.07314, eq. 2). ``accuracy``: share of the
        test images. ``harmonic``: harmonic mean over all classes, 0 where one is never right. ``worst``: the least
        of all classes. Waits for the device.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> groups = shot_groups(torch.tensor([500, 50, 5]))
        >>> result = group_metrics(torch.tensor([1.0, 0.5, 0.0]), groups, test_counts=torch.tensor([8, 1, 1]))
        >>> result["std"], result["average"], result["accuracy"]
        (0.5, 0.5, 0.85)
    """
    if accuracy.shape != test_counts.shape or accuracy.ndim != 1:
        found = shapes(accuracy, test_counts)
        raise ValueError(f"accuracy and test_counts must share a shape (C,), got {found}")
    accuracy = accuracy.double()
    means = group_means(accuracy, groups)
    present = [mean for mean in means.values() if mean is not None]
    average = _mean(accuracy)
    known = accuracy[~accuracy.isnan()]
    return means | {
        "std": torch.tensor(present).std(correction=STD_DDOF).item() if len(present) == 3 else None,
        "average": average,
        "balanced_error": None if average is None else 1 - average,
        "accuracy": ((accuracy.nan_to_num() * test_counts).sum() / test_counts.sum()).item(),
        # A class at 0 has an infinite reciprocal, and the mean of the reciprocals is turned into 0.
        "harmonic": known.reciprocal().mean().reciprocal().item() if len(known) else None,
        "worst": known.min().item() if len(known) else None,
    }


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else None


def confused_share(
    predictions: Tensor, labels: Tensor, *, source: Tensor, target: Tensor
) -> float | None:
    """Share of the images of some classes that are predicted as one of some others.

    Args:
        predictions: Shape (N,), predicted classes.
        labels: Shape (N,), true classes.
        source: Shape (C,), bool: the classes whose images are looked at, as `shot_groups` gives them.
        target: Shape (C,), bool: the classes they are taken for.

    Returns:
        Every image counting the same; None without an image, or without a target. Waits for the device.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        Of three images of class 2, the few-shot one, two are taken for class 0, the many-shot one:

        >>> many, few = torch.tensor([True, False, False]), torch.tensor([False, False, True])
        >>> confused_share(torch.tensor([0, 0, 1, 0]), torch.tensor([2, 2, 2, 0]), source=few, target=many)
        0.6666666666666666
    """
    _check(predictions, labels)
    predicted = predictions[source[labels]]
    if len(predicted) == 0 or not target.any():
        return None
    return target[predicted].double().mean().item()


@in_float32
def class_tightness(z: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean squared distance between two images of a class on the unit sphere; smaller is tighter.

    Over all pairs of different images this is 2 n/(n-1) (1 - |mean|^2). Without the factor n/(n-1) a class of five
    training images would look a fifth tighter than it is. It is at most 2 n/(n-1), and 2 in the mean for directions
    drawn uniformly. Our measure of what *Embedding and Logit Margins* (arXiv:2204.13208) calls diffuse; the paper's
    own was not at hand.

    Args:
        z: Shape (N, D). Need not be normalized.
        labels: Shape (N,), integers in [0, C).
        num_classes: C.

    Returns:
        Shape (C,), float32; nan for a class of fewer than two images.

    Raises:
        ValueError: If the shapes disagree.

    Examples:
        The two images of class 0 point the same way, those of class 1 opposite ways (distance 2):

        >>> z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
        >>> class_tightness(z, torch.tensor([0, 0, 1, 1, 2]), 3)
        tensor([0., 4., nan])
    """
    check_labels(z, labels)
    z = normalize(z, dim=1)
    counts = torch.bincount(labels, minlength=num_classes)
    means = z.new_zeros(num_classes, z.shape[1]).index_add(0, labels, z) / counts[:, None].clamp(
        min=1
    )
    # Squared deviations instead of 1 - |mean|^2, which cancels for tight classes.
    squares = (z - means[labels]).square().sum(1)
    spread = z.new_zeros(num_classes).index_add(0, labels, squares)
    tightness = 2 * spread / (counts - 1).clamp(min=1)
    return tightness.where(counts > 1, torch.nan)


def _check(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1:
        found = shapes(predictions, labels)
        raise ValueError(f"predictions and labels must share a shape (N,), got {found}")
