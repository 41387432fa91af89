"""Images in ``.npz`` archives."""

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslgh.data.image_set import DataError, ImageSet, check_classes
from sslgh.recipe.errors import located

# What reading a damaged .npz file raises. RuntimeError: a flipped bit marks it as encrypted, or
# compressed in a way that there is none of. TokenError: the head of an array ends too early. MemoryError:
# its sizes are petabytes.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_WAY_OUT = "write it with numpy.savez(file, images=..., labels=..., class_names=...)"


def read_arrays(root: Path, split: str) -> ImageSet | None:
    """``root/train.npz`` or ``root/test.npz``; None when there is no test file.

    Keys: ``images`` uint8 (N, H, W, 3); optional ``labels`` integer (N,) and ``class_names`` text (C,).
    Without names classes are called by their number. The classes are those of the training file.

    Raises:
        DataError: If the training file is missing, or a key has another type or shape.
    """
    if not root.is_dir():
        raise DataError(
            f"data.root {located(root)} is not a folder; give the folder that holds train.npz"
        )
    file = root / f"{split}.npz"
    if split == "test" and not file.exists():
        return None
    images = _load(file, "images")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        got = "nothing" if images is None else f"{images.dtype} {images.shape}"
        raise DataError(f"{file}: images must be uint8 (N, H, W, 3), got {got}; {_WAY_OUT}")
    if images.size == 0:
        raise DataError(f"{file}: images are empty, got the shape {images.shape}; {_WAY_OUT}")
    labels = _labels(file)
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{file}: {len(images)} images need as many labels, got {len(labels)}")
    names = tuple(str(position) for position in range(len(images)))
    if labels is None:
        return ImageSet(images, None, (), names)
    return ImageSet(images, labels, _class_names(root, file, labels), names)


def _class_names(root: Path, file: Path, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Names from the training file when it is labeled, so that both splits have the same classes."""
    train = root / "train.npz"
    known = _labels(train) if train != file and train.exists() else labels
    source = file if known is None else train
    highest = int((labels if known is None else known).max())
    given = _load(source, "class_names")
    if given is None:
        names = tuple(str(label) for label in range(highest + 1))
    elif given.ndim != 1 or given.dtype.kind not in "US":
        raise DataError(f"{source}: class_names must be text (C,), got {given.dtype} {given.shape}")
    else:
        names = tuple(given.astype(str).tolist())
    for origin, top in ((source, highest), (file, int(labels.max()))):
        if top >= len(names):
            raise DataError(
                f"{origin}: label {top} has no class, {source} knows {len(names)}; make them agree"
            )
    return names


def _labels(file: Path) -> NDArray[np.int64] | None:
    labels = _load(file, "labels")
    if labels is None:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{file}: labels must be integers (N,), got {labels.dtype} {labels.shape}")
    if labels.size == 0 or labels.min() < 0:
        raise DataError(f"{file}: labels must count from 0; leave them out of an unlabeled set")
    check_classes(str(file), int(labels.max()))
    return labels.astype(np.int64)


def _load(file: Path, key: str) -> NDArray[Any] | None:
    """One array of an archive, None when it is not in there."""
    try:
        # Opened here: NumPy leaves the file open when it is no archive.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return np.asarray(archive[key]) if key in archive else None
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; {_WAY_OUT}") from None
    except UNREADABLE as error:
        raise DataError(f"{file}: {key} cannot be read ({error}); {_WAY_OUT}") from error
