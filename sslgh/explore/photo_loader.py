"""Photos in batches, decoded in loader processes: pixels for the network, facts, and faults."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslgh.data.decoding import BROKEN, opened_image, reason, upright_rgb
from sslgh.data.loader import end_workers_at_exit, leave_signals_to_the_run
from sslgh.preprocessing import Preprocessing, pixels

# Of an upright RGB image, which it must not change, and its path: numbers or arrays by name. The names, shapes and
# types are the same for every photo. A function of a module, or a `functools.partial` of one, so that it can be pickled.
Facts = Callable[[Image.Image, Path], Mapping[str, Any]]


class Photo(NamedTuple):
    """One file, read.

    Attributes:
        position: Position in the list of photos.
        pixels: uint8 (3, S, S); None if the file is broken.
        facts: What the caller's function says of the image; empty if the file is broken.
        fault: Why it cannot be read; None if it can.
    """

    position: int
    pixels: NDArray[np.uint8] | None
    facts: Mapping[str, Any]
    fault: str | None


class PhotoBatch(NamedTuple):
    """Up to N photos, of which M can be read.

    Attributes:
        positions: M positions in the list of photos.
        pixels: uint8 (M, 3, S, S).
        facts: Arrays (M, ...) by name.
        faults: Why the others cannot be read, by position.
    """

    positions: list[int]
    pixels: Tensor
    facts: dict[str, NDArray[Any]]
    faults: dict[int, str]


class PhotoDataset(Dataset[Photo]):
    """Photos by position; one that is broken gives its fault instead of an error.

    Args:
        paths: Files.
        preprocess: S, and how the image is resized and cut.
        facts: Function of each image, or None.
    """

    def __init__(
        self, paths: Sequence[Path], preprocess: Preprocessing, facts: Facts | None
    ) -> None:
        self.paths, self.preprocess, self.facts = paths, preprocess, facts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Photo:
        path = self.paths[position]
        try:
            with opened_image(path) as opened:
                image = upright_rgb(opened)
            # One photo that cannot be measured or cut must not end the embedding of all.
            facts = {} if self.facts is None else self.facts(image, path)
            return Photo(position, pixels(self.preprocess.crop(image)), facts, None)
        except BROKEN as error:
            return Photo(position, None, {}, reason(error))


def photo_loader(
    dataset: PhotoDataset, positions: Sequence[int], *, batch_size: int, workers: int
) -> "DataLoader[Any]":
    """Each `PhotoBatch` of some photos, in order.

    Args:
        dataset: All photos.
        positions: Positions of those that are wanted.
        batch_size: Largest N.
        workers: Loader processes; 0: this one.
    """
    if workers:
        end_workers_at_exit()
    return DataLoader(
        dataset,
        sampler=list(positions),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=batched,
        worker_init_fn=_start_worker,
    )


def _start_worker(number: int) -> None:
    # The caller's facts may compute with torch; cores are shared out by processes already.
    torch.set_num_threads(1)
    leave_signals_to_the_run(number)


def batched(photos: Sequence[Photo]) -> PhotoBatch:
    """Photos as one batch."""
    sound = [photo for photo in photos if photo.pixels is not None]
    faults = {photo.position: photo.fault for photo in photos if photo.fault is not None}
    if not sound:
        return PhotoBatch([], torch.empty(0, 3, 0, 0, dtype=torch.uint8), {}, faults)
    stacked = np.stack([photo.pixels for photo in sound if photo.pixels is not None])
    facts = {name: np.stack([np.asarray(p.facts[name]) for p in sound]) for name in sound[0].facts}
    positions = [photo.position for photo in sound]
    return PhotoBatch(positions, torch.from_numpy(stacked), facts, faults)
