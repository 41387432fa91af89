"""Anyone's features from an .npz file.

Shapes: N images, F features.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslgh.data.arrays import UNREADABLE
from sslgh.data.image_set import check_classes


class FeatureFile(NamedTuple):
    """Features and labels of a training and a test set."""

    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor


def load_feature_file(path: Path) -> FeatureFile:
    """Read ``train_features, train_labels, test_features, test_labels`` from an .npz file.

    Features are floats (N, F) with one F, labels integers (N,) from 0.

    Raises:
        ValueError: If the file is missing or no .npz, or an array is missing, misshapen or not finite.
    """
    arrays = _read(path)
    if missing := [name for name in FeatureFile._fields if name not in arrays]:
        raise ValueError(
            f"{path}: array {missing[0]} is missing; expected {', '.join(FeatureFile._fields)}, got "
            f"{', '.join(arrays) or 'none'}"
        )
    for split in ("train", "test"):
        _check(path, split, arrays[f"{split}_features"], arrays[f"{split}_labels"])
    widths = [arrays[f"{split}_features"].shape[1] for split in ("train", "test")]
    if widths[0] != widths[1]:
        raise ValueError(f"{path}: train_features are {widths[0]} wide, test_features {widths[1]}")
    return FeatureFile(
        torch.from_numpy(arrays["train_features"].astype(np.float32)),
        torch.from_numpy(arrays["train_labels"].astype(np.int64)),
        torch.from_numpy(arrays["test_features"].astype(np.float32)),
        torch.from_numpy(arrays["test_labels"].astype(np.int64)),
    )


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected an .npz file of features")
    try:
        # Opened here: NumPy leaves the file open when it is no archive. Pickled arrays could run code.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            # A member that is no array comes as its bytes, and is refused by its shape.
            return {name: np.asarray(file[name]) for name in file.files}
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as an .npz file without pickles: {error}"
        ) from error


def _check(
    path: Path, split: str, features: NDArray[np.generic], labels: NDArray[np.generic]
) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or features.size == 0:
        raise ValueError(
            f"{path}: {split}_features and {split}_labels must be (N, F) and (N,), got {features.shape} and {labels.shape}"
        )
    if labels.dtype.kind not in "iu" or int(labels.min()) < 0:
        got = labels.dtype if labels.dtype.kind not in "iu" else int(labels.min())
        raise ValueError(f"{path}: {split}_labels must be integers from 0, got {got}")
    check_classes(f"array {split}_labels of {path}", int(labels.max()))
    if not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"{path}: {split}_features must be floats, got {features.dtype}")
    if broken := int((~np.isfinite(features.astype(np.float32))).any(1).sum()):
        raise ValueError(
            f"{path}: {broken} of {len(features)} rows of {split}_features hold nan or inf"
        )
