"""Predictions for training images by heads that have not seen them: what there is without a test set.

Shapes: N images, S seeds.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sslgh.classify.selection import NEVER, stratified_folds
from sslgh.data import DataError
from sslgh.evaluation.scoring import Predictions


def out_of_fold(
    labels: Tensor,
    folds: int,
    predict: Callable[[Tensor, Tensor], Mapping[str, Predictions]],
) -> tuple[dict[str, Predictions], Tensor]:
    """Predict every fold by what is trained on the others.

    Args:
        labels: Classes of the training images, shape (N,).
        folds: Number of stratified folds. A class with fewer images has one of them held out in each of as many folds
            as it has images; the only image of a class is never held out.
        predict: Given masks (N,) of the images to train on and of those to predict, predictions by objective.

    Returns:
        Predictions by objective, (S, M), and a mask (N,) of the M images that they are for, in their order.

    Raises:
        DataError: If every class has a single image.
    """
    try:
        part = stratified_folds(labels, folds)
    except ValueError as error:
        raise DataError(
            f"there is no test set, and without one {error}; give test images, or more images per class"
        ) from error
    rows, found = [], []
    for fold in sorted(set(part[part != NEVER].tolist())):
        rows.append((part == fold).nonzero().flatten())
        found.append(predict(part != fold, part == fold))
    order = torch.cat(rows).argsort()
    joined = {
        name: Predictions(
            *(
                torch.cat(pieces, dim=1)[:, order]
                for pieces in zip(*(f[name] for f in found), strict=True)
            )
        )
        for name in found[0]
    }
    return joined, part != NEVER
