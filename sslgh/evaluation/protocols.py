"""Named, versioned protocols of evaluation: which images a frozen backbone is evaluated on, and how.

Shapes: N images, C classes.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sslgh.classify import Convergence, HeadTraining, Training
from sslgh.data import DataError, ImageSet, load_images
from sslgh.data.run_images import probe_images
from sslgh.recipe.data import Data

log = logging.getLogger(__name__)

# Steps of the heads of the GH paper on its smallest training set, 50 images of each class of CIFAR-100.
FEW_STEPS = 2500
# Largest over smallest class that still counts as balanced; the digits' classes differ by a tenth.
BALANCED = 1.5
# Which images of a class are the shots.
SHOTS_SEED = 0
NEIGHBOR_TEMPERATURE = 0.1

# Linear probing of the Geometric Harmonization paper (arXiv:2310.17622) as its code does it.
GH_HEADS = HeadTraining(
    epochs=500,
    batch_size=1000,
    lr=1e-2,
    lr_end=1e-6,
    weight_decay=5e-6,
    decay_bias=True,
    standardize=False,
)

# Version 1 of `longtail`, which ends after 40 epochs: on a few hundred images far from an optimum. Chosen on hold-out
# parts of the CIFAR training splits (random-patch features, 512 wide, imbalance 100), never on a test set. Standardized, since features of different backbones differ in scale by orders of magnitude while Adam's
# steps do not. Batches of 128: 40 epochs are then enough steps for a set of a few hundred images, and the pairs of
# the embedding term stay cheap. Three seeds of four objectives on 10,847 x 512 with 100 classes: 45 s on one core.
LONGTAIL_HEADS = HeadTraining(epochs=40, batch_size=128, lr=1e-2, lr_end=1e-4, weight_decay=1e-3)


# Chosen on training images alone, by 5 folds: of six strengths from 1e-3 to 3e-1 the logit-adjusted head has its highest
# balanced accuracy with 1e-2 on CIFAR-10-LT (2,478 images, 128 random-patch features: 31.1, others 29.0 to 30.8), and
# on long-tailed digits it is .1 to .4 below the best, which is 1e-3 (SimCLR features 93.8 of 93.9, pixels 95.6 of 96.0).
CONVERGED_HEADS = Convergence(weight_decay=1e-2)


@dataclass(frozen=True)
class Protocol:
    """How a frozen backbone is evaluated.

    Attributes:
        name: As recipes name its newest version.
        version: Raised whenever its numbers change.
        summary: One line, printed above the numbers.
        train: ``whole``: the uncut, balanced training split; ``shots``: that many images of each class;
            ``longtail``: the images of pretraining, with their labels.
        shots: Images of each class for ``shots``.
        weak: Training features come from a weakly augmented view, drawn once.
        heads: How heads are trained; None: the nearest neighbors vote.
    """

    name: str
    version: int
    summary: str
    train: Literal["whole", "shots", "longtail"]
    shots: int | None = None
    weak: bool = False
    heads: Training | None = None


_CONVERGED = f"standardized, L2 {CONVERGED_HEADS.weight_decay:g}, trained until converged"
_GH = "linear, Adam 1e-2 to 1e-6, 500 epochs, batch 1000, last epoch"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "longtail", 2, f"long-tailed labels; {_CONVERGED}", "longtail", heads=CONVERGED_HEADS
        ),
        Protocol(
            "balanced",
            1,
            f"balanced training split; cross-entropy, {_CONVERGED}",
            "whole",
            heads=CONVERGED_HEADS,
        ),
        Protocol(
            "gh-cifar-full", 1, f"balanced training split; {_GH}", "whole", None, True, GH_HEADS
        ),
        Protocol("gh-100shot", 1, f"100 images per class; {_GH}", "shots", 100, True, GH_HEADS),
        Protocol("gh-50shot", 1, f"50 images per class; {_GH}", "shots", 50, True, GH_HEADS),
        Protocol("knn", 1, "long-tailed labels; cosine, votes exp(cosine / 0.1)", "longtail"),
    )
}
# An earlier version has its number in the name.
PROTOCOLS["longtail-v1"] = Protocol(
    "longtail",
    1,
    "long-tailed labels; standardized, Adam 1e-2 to 1e-4, 40 epochs, batch 128",
    "longtail",
    heads=LONGTAIL_HEADS,
)


@dataclass(frozen=True)
class LabeledImages:
    """All the labeled images of a data section.

    Attributes:
        full_train: The training split as the source has it.
        longtail: The images of pretraining that still exist.
        class_counts: Images of pretraining per class, shape (C,).
        test: The test set, with the classes of the training split; None: there is none with labels.
    """

    full_train: ImageSet
    longtail: ImageSet
    class_counts: NDArray[np.int64]
    test: ImageSet | None


def labeled_images(data: Data, directory: Path | None = None) -> LabeledImages:
    """Load what a probe needs.

    Args:
        data: Data section of the recipe.
        directory: Run directory whose recorded images are those of pretraining; None: there is none yet.

    Raises:
        DataError: If the source has no labels, or is no longer what the run was trained on.
    """
    full_train, test = load_images(data, "train"), load_images(data, "test")
    assert full_train is not None  # every source has a training split
    if full_train.labels is None:
        raise DataError(
            f"a probe needs labels, and source {data.source} at {data.root} has none; sort the images into "
            "one folder per class, or set probe=[]"
        )
    if test is not None and test.labels is None:
        test = None
    # Sources number both splits the same way.
    assert test is None or test.class_names == full_train.class_names
    longtail, counts = probe_images(directory, data, full_train)
    return LabeledImages(full_train, longtail, counts, test)


def training_images(protocol: Protocol, images: LabeledImages) -> ImageSet:
    """The images a protocol trains on.

    Raises:
        DataError: If a class holds too few images, or the training split is not balanced where it must be.
    """
    if protocol.train == "longtail":
        return images.longtail
    assert images.full_train.labels is not None
    rows = training_rows(protocol, images.full_train.labels, images.full_train.class_names)
    return images.full_train if rows is None else images.full_train.subset(rows)


def training_rows(
    protocol: Protocol, labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> NDArray[np.int64] | None:
    """Positions (M,) of the images a protocol trains on; None: all of them.

    Raises:
        DataError: If a class holds too few images, or the labels are not balanced where they must be.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if protocol.train == "whole" and counts.max() > BALANCED * counts.min():
        raise DataError(
            f"{protocol.name} trains on a balanced training split, but its classes hold {counts.min()} to "
            f"{counts.max()} images; use gh-50shot or longtail"
        )
    return _shots(protocol, labels, counts, class_names) if protocol.shots else None


def warn_of_few_steps(name: str, training: HeadTraining, num_images: int) -> None:
    """Log a warning if heads see so few batches that their training ends before they have converged."""
    steps = training.epochs * math.ceil(num_images / training.batch_size)
    if steps < FEW_STEPS:
        log.warning(
            "%s takes %d steps on these %d images, fewer than on any set of its paper, and ends before its heads "
            "have converged: it may show differences that are none; protocol balanced trains until converged",
            name,
            steps,
            num_images,
        )


def _shots(
    protocol: Protocol,
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
    class_names: tuple[str, ...],
) -> NDArray[np.int64]:
    need = protocol.shots
    scarce = int(counts.argmin())
    if need is None or counts[scarce] < need:
        raise DataError(
            f"{protocol.name} needs {need} training images of every class, but class "
            f"'{class_names[scarce]}' has {counts[scarce]}; use a protocol of fewer shots or longtail"
        )
    generator = np.random.RandomState(SHOTS_SEED)
    drawn = [
        generator.permutation(np.flatnonzero(labels == c))[:need] for c in range(len(class_names))
    ]
    return np.sort(np.concatenate(drawn))
