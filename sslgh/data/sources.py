"""From the ``data`` section of a recipe to sets of images, and the published way of cutting a long tail."""

import http.client
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from sslgh.data.arrays import read_arrays
from sslgh.data.decoding import reason
from sslgh.data.folders import read_folder, split_folders, warn_of_splits
from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.lists import read_list
from sslgh.recipe.data import Data, LongTail, Shuffled
from sslgh.recipe.errors import located, printable, shown

Split = Literal["train", "test"]
Integers = NDArray[np.int64]
CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}
# Side of the network's input (pixels).
SIDES = {"cifar10": 32, "cifar100": 32, "digits": 16}


def load_images(data: Data, split: Split, *, labeled: bool = True) -> ImageSet | None:
    """The whole training or test set of a source, None if it has no test set.

    Args:
        data: Data section of the recipe.
        split: Which set.
        labeled: Whether labels are wanted, which decides on ``data.labels: auto``: a folder that is not divided
            into splits is unlabeled otherwise.

    Raises:
        DataError: If the source cannot be used.
    """
    if data.source == "digits":
        return _digits(data, split)
    if data.source in CIFAR:
        return _cifar(data, split)
    if data.source == "arrays":
        return read_arrays(data.root, split)
    if data.source == "folder":
        return _folder(data, split, labeled)
    return _list(data, split)


def training_set(data: Data, *, labeled: bool = True) -> ImageSet:
    """The images to pretrain on, with labels for evaluation: the training split after its cuts.

    ``labeled``: as in `load_images`.

    Raises:
        DataError: If the source cannot be used, or cut as ``data.long_tail`` and ``data.subset`` ask.
    """
    images = load_images(data, "train", labeled=labeled)
    assert images is not None  # every source has a training split
    if data.long_tail is not None:
        images = _long_tailed(images, data)
    if data.subset is not None:
        images = images.subset(read_positions(data.subset, len(images)))
    return images


def read_positions(file: Path, num_images: int) -> NDArray[np.int64]:
    """Positions of a subset, from a file with one per line; blank lines are skipped.

    Args:
        file: The value of ``data.subset``.
        num_images: Positions lie in 0..num_images - 1.

    Returns:
        Shape (N,), in the order of the file.

    Raises:
        DataError: If the file cannot be read, or a line is no position, or repeats one.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.subset {located(file)} cannot be read ({reason(error)}); give a text file of positions"
        ) from None
    wrong = [line for line in lines if line and not (line.isdecimal() and int(line) < num_images)]
    if wrong:
        raise DataError(
            f"data.subset {file} holds {shown(wrong[0])}, but each line must be a position in "
            f"0..{num_images - 1}; it belongs to other data, or to another long tail"
        )
    positions = np.array([int(line) for line in lines if line], dtype=np.int64)
    if len(positions) == 0 or len(np.unique(positions)) < len(positions):
        fault = "names an image twice" if len(positions) else "is empty"
        raise DataError(f"data.subset {file} {fault}; give each position once, one per line")
    return positions


def _long_tailed(images: ImageSet, data: Data) -> ImageSet:
    assert data.long_tail is not None
    if images.labels is None:
        raise DataError(
            f"data.long_tail cuts by label, and source {data.source} at {data.root} has no labels; "
            "leave data.long_tail out"
        )
    return images.subset(select_long_tail(images.labels, data.long_tail, images.class_names))


def input_size(data: Data, images: ImageSet, of_weights: int | None = None) -> int:
    """Side of the network's input (pixels): ``data.size``, what suits the source, or the weights, or 224.

    Raises:
        DataError: If arrays are not square and no size is given.
    """
    if data.size is not None:
        return data.size
    return SIDES.get(data.source) or _side(images) or of_weights or 224


def _side(images: ImageSet) -> int | None:
    """The side of images in memory."""
    if not isinstance(images.images, np.ndarray):
        return None
    height, width = images.images.shape[1:3]
    if height != width:
        raise DataError(f"images of {width}x{height} pixels are not square; set data.size")
    return int(height)


def _in_memory(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]
) -> ImageSet:
    return ImageSet(images, labels, tuple(classes), tuple(str(i) for i in range(len(images))))


def _digits(data: Data, split: Split) -> ImageSet:
    """Scikit-learn's 1,797 scans of 8x8 pixels; the test set is balanced and drawn by seed."""
    scans, labels = load_digits(return_X_y=True)
    gray = np.rint(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    whole = _in_memory(gray.repeat(3, axis=3), labels.astype(np.int64), [str(c) for c in range(10)])
    smallest = int(whole.class_counts.min())
    if data.test_per_class >= smallest:
        raise _no_digits_left(data.test_per_class, smallest)
    generator = np.random.RandomState(data.split_seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == c))[: data.test_per_class] for c in range(10)
    ]
    test = np.sort(np.concatenate(drawn))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return whole.subset(test if split == "test" else train)


def _no_digits_left(test_per_class: int, smallest: int) -> DataError:
    return DataError(
        f"data.test_per_class is {test_per_class}, but the smallest digit class holds "
        f"{smallest} images; leave some for training"
    )


def _cifar(data: Data, split: Split) -> ImageSet:
    source = CIFAR[data.source]
    try:
        found = source(data.root, train=split == "train", download=data.download)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if data.download:
            way_out = (
                f"the download failed ({error}); fetch {source.url} by hand and unpack it there"
            )
        else:
            way_out = f"set data.download=true, or unpack {source.url} there"
        raise DataError(
            f"{data.source} is not complete under data.root {located(data.root)}: {way_out}"
        ) from error
    return _in_memory(found.data, np.array(found.targets, dtype=np.int64), found.classes)


def _folder(data: Data, split: Split, labeled: bool) -> ImageSet | None:
    splits = split_folders(data.root, data.test_root)
    warn_of_splits(splits)
    train, test = splits.train, splits.test
    if split == "test" and test is None:
        return None
    labeled = _folders_are_classes(data, labeled, divided=bool(splits.folders))
    images = read_folder(train, without=test, labeled=labeled)
    if data.labels == "folders" and images.labels is None:
        raise DataError(
            f"data.labels is folders, but not every image of {printable(train)} lies in one of several folders in it; "
            "put each into the folder of its class, or leave data.labels out"
        )
    if split == "train" or test is None:
        return images
    classes = images.class_names
    return read_folder(test, without=train, classes=classes, train=train, labeled=labeled)


def _folders_are_classes(data: Data, labeled: bool, *, divided: bool) -> bool:
    """What ``data.labels`` says; auto: folders of a camera are no kinds, unless labels are wanted for them."""
    if data.labels != "auto":
        return data.labels == "folders"
    return labeled or divided or data.test_root is not None or data.long_tail is not None


def describe_images(images: ImageSet, data: Data) -> str:
    """How many images a run has, and which labels were taken from folders."""
    count = f"{len(images)} images"
    if data.source != "folder":
        return count
    if images.labels is not None:
        return f"{count}, labels: folders ({len(images.class_names)} classes)"
    advice = " (data.labels=folders takes folders as classes)" if data.labels == "auto" else ""
    return f"{count}, labels: none{advice}"


def _list(data: Data, split: Split) -> ImageSet | None:
    assert data.list is not None  # the schema holds list and source together
    if data.test_root is not None and data.test_list is None:
        raise DataError(
            "data.test_root without data.test_list: give the list of the test images too"
        )
    train = read_list(data.list, data.root, key="data.list")
    if split == "train":
        return train
    if data.test_list is None:
        return None
    root = data.test_root or data.root
    return read_list(data.test_list, root, key="data.test_list", classes=train.class_names)


def profile(n_max: int, num_classes: int, settings: LongTail) -> Integers:
    """Images by rank, from head to tail, for the profiles ``exp`` and ``step``, shape (C,).

    Truncated as in the public generator (LDAM, arXiv:1906.07413, ``imbalance_cifar.py``), not rounded.

    Examples:
        >>> profile(500, 3, LongTail(imbalance=100)).tolist()
        [500, 50, 5]
        >>> profile(500, 4, LongTail(profile="step", imbalance=10)).tolist()
        [500, 500, 50, 50]
    """
    ranks = range(num_classes)
    if settings.profile == "step":
        tail = int(n_max / settings.imbalance)
        return np.array([n_max if c < num_classes // 2 else tail for c in ranks])
    factor = 1 / settings.imbalance
    last = max(num_classes - 1, 1)
    return np.array([int(n_max * factor ** (c / last)) for c in ranks])


def select_long_tail(
    labels: NDArray[np.integer], settings: LongTail, class_names: Sequence[str]
) -> Integers:
    """Positions of a long-tailed subset, classes one after the other in label order.

    ``published`` is the generator of LDAM that all CIFAR-LT results use: NumPy's legacy generator is
    seeded once, the positions of each class are shuffled in label order, and the first n_c are kept.

    ``labels``: shape (N,), 0..C-1. ``class_names``: C names, for messages.

    Raises:
        DataError: If a class holds too few images, or would be left with none.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> select_long_tail(labels, LongTail(imbalance=4, select="first"), ("cat", "dog")).tolist()
        [0, 1, 2, 3, 4]
    """
    have = np.bincount(labels, minlength=len(class_names))
    need = _sizes(have, settings)
    if settings.profile != "natural" and (need.min() < 1 or (have < need).any()):
        raise _too_few(need, have, settings, class_names)
    generator = np.random.RandomState(settings.seed)
    kept = []
    for label, size in enumerate(need):
        positions = np.flatnonzero(labels == label)
        if settings.select == "published":
            generator.shuffle(positions)
        kept.append(positions[:size])
    return np.concatenate(kept).astype(np.int64)


def _sizes(have: Integers, settings: LongTail) -> Integers:
    """Images to keep of each class, in label order; with ``class_order`` the class at rank r is ``permutation(C)[r]``."""
    n_max = settings.max_per_class or int(have.max())
    if settings.profile == "natural":
        return np.minimum(have, n_max)
    by_rank = profile(n_max, len(have), settings)
    if not isinstance(settings.class_order, Shuffled):
        return by_rank
    sizes = np.empty_like(by_rank)
    sizes[np.random.RandomState(settings.class_order.shuffled).permutation(len(have))] = by_rank
    return sizes


def _too_few(
    need: Integers, have: Integers, settings: LongTail, class_names: Sequence[str]
) -> DataError:
    empty = np.flatnonzero(need < 1)
    if len(empty):
        return DataError(
            f"data.long_tail would leave class '{class_names[empty[0]]}' without an image "
            f"({len(empty)} classes in all; the largest gets {need.max()}, imbalance "
            f"{settings.imbalance:g}); lower data.long_tail.imbalance or raise max_per_class"
        )
    short = np.flatnonzero(have < need)
    first = short[0]
    return DataError(
        f"data.long_tail needs {need[first]} images of class '{class_names[first]}', which holds "
        f"{have[first]} ({len(short)} of {len(have)} classes are short); {_advice(have, settings)}"
    )


def _advice(have: Integers, settings: LongTail) -> str:
    """The largest head that every class can follow, when there is one."""
    for n_max in range(int(have.max()), 0, -1):
        need = _sizes(have, settings.model_copy(update={"max_per_class": n_max}))
        if need.min() < 1:
            break
        if (need <= have).all():
            return f"set data.long_tail.max_per_class to {n_max} or less"
    return "lower data.long_tail.imbalance or use profile: natural"
