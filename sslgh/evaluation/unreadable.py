"""Training images that a run could not read are left out of what heads are trained on."""

import logging
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from sslgh.data import ImageSet
from sslgh.data.quarantined import QUARANTINE, READS_NOW, quarantined, reason

log = logging.getLogger(__name__)


def unreadable_names(images: ImageSet, directory: Path, accelerator: Accelerator) -> frozenset[str]:
    """Names of the images that the run in ``directory`` found broken and that still are.

    Said once, by the main process. Collective: call it on every rank with one answer for all.

    Args:
        images: The training split.
        directory: The run directory.
        accelerator: The processes; the main one reads.

    Raises:
        DataError: If the run's report is damaged.
    """
    # Read by every process, so that a damaged report stops them all.
    named = quarantined(directory)
    found: list[frozenset[str]] = [frozenset()]
    if accelerator.is_main_process and named:
        positions = [i for i, name in enumerate(images.names) if name in named]
        broken = [i for i in positions if reason(images, i) != READS_NOW]
        found = [frozenset(images.names[i] for i in broken)]
    broadcast_object_list(found)
    if accelerator.is_main_process and found[0]:
        log.warning(
            "%d training images cannot be read and are left out of the training features (%s names them)",
            len(found[0]),
            directory / QUARANTINE,
        )
    return found[0]


def without(images: ImageSet, names: frozenset[str]) -> ImageSet:
    """The images but those of the given names; the same set where none is."""
    kept = np.array([name not in names for name in images.names], dtype=bool)
    return images if kept.all() else images.subset(np.flatnonzero(kept))
