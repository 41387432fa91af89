"""F1 of classes, and how often one group of classes is confused with another.

Shapes: N predictions, C classes.
"""

import torch
from torch import Tensor


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


def _check(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"predictions and labels must share a shape (N,), got {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
