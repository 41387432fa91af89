"""Tolerate unreadable images and report them in quarantine.json."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sslgh.data import DataError, ImageSet, PretrainBatch, SupervisedBatch, end_workers
from sslgh.data.image_set import (
    QUARANTINE,
    READS_NOW,
    quarantine_text,
    read_error,
    read_quarantine,
    still_broken,
)
from sslgh.distributed import any_rank, dist_info
from sslgh.engine.launch import run_on_main
from sslgh.engine.run_dir import write_text
from sslgh.recipe.errors import printable

Batch = PretrainBatch | SupervisedBatch
# 0.29 * 100 is a little less than 29.
ROUNDING = 1e-6


class BrokenImages(Iterator[Batch]):
    """A loader's batches; remembers which images are broken.

    A rank that finds hardly any readable image repeats its last batch: raising an error alone would leave
    the others waiting in a collective. The next `sync`, which comes before anything is saved, stops all.

    Args:
        batches: Batches of `view_loader` or `labeled_loader`.
        images: The training set.
        share: The recipe's ``data.broken_share``.
        directory: The run directory, with the report of an interrupted run; None: nothing is written.
        device: Device of the collectives.

    Raises:
        DataError: If the report in the directory is damaged.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        images: ImageSet,
        *,
        share: float,
        directory: Path | None,
        device: torch.device,
    ) -> None:
        self.batches, self.images, self.share = batches, images, share
        self.directory, self.device = directory, device
        self._last: Batch | None = None
        self._failure: str | None = None
        # Images found before a stop count again once they are met: a run that stopped because of too
        # many resumes only if they were repaired.
        self._known: set[int] = set()
        self._new: set[int] = set()
        self._files = {} if directory is None else read_quarantine(directory)
        if self._files and dist_info().rank == 0:
            self._recheck()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        first = self._last is None
        try:
            batch = next(self.batches)
        except DataError as error:
            self._failure = str(error)  # the error itself would keep the workers' frames alive
        else:
            self._last = batch
            self._new.update(set(batch.broken[batch.broken >= 0].tolist()) - self._known)
        # Every rank asks for its first batch: without one there is nothing to repeat.
        if first and any_rank(self._failure is not None, self.device):
            raise DataError(next(why for why in gather_object([self._failure]) if why is not None))
        assert self._last is not None
        return self._last

    def close(self) -> None:
        """Stop the loader's workers."""
        end_workers(self.batches)

    def should_report(self, *, logged: bool) -> bool:
        """Whether this rank needs a `sync`: at once if it has no images left, for broken ones on ``logged`` steps."""
        return self._failure is not None or (logged and bool(self._new))

    def sync(self, accelerator: Accelerator) -> str | None:
        """A message on images found broken since the last call, or None. Collective: call it on every rank.

        Raises:
            DataError: On every rank, if more than ``share`` of the images are broken, or hardly any
                can be read.
        """
        needed = any_rank(self.should_report(logged=True), self.device)
        return self._sync(accelerator) if needed else None

    def _sync(self, accelerator: Accelerator) -> str:
        """Gather what was found; rank 0 writes ``quarantine.json``."""
        found = gather_object([(sorted(self._new), self._failure)])
        new = sorted({position for positions, _ in found for position in positions})
        failure = next((why for _, why in found if why is not None), None)
        self._known.update(new)
        self._new.clear()
        return run_on_main(partial(self._report, new, failure), accelerator)

    def _report(self, new: list[int], failure: str | None) -> str:
        """Write the report and check the share of broken images; rank 0 only.

        Raises:
            DataError: If too many are broken.
        """
        found = {self.images.names[position]: read_error(self.images, position) for position in new}
        self._files |= found
        where = self._write()
        if failure is not None:
            raise DataError(f"{failure}; {where}")
        # By position: the lines of a list may name one file many times.
        names, total = frozenset(still_broken(self._files)), len(self.images)
        broken = sum(name in names for name in self.images.names)
        name = min(still_broken(found) or found)
        first = found[name] if found[name] != READS_NOW else f"{printable(name)} {READS_NOW}"
        # With a share of 0 not even a file that was broken for a while is allowed.
        if broken - self.share * total > ROUNDING or self.share == 0:
            raise DataError(
                f"{broken} of {total} images cannot be read ({broken / total:.1%}) and data.broken_share "
                f"allows {self.share:.1%}: repair them or raise data.broken_share; {where}; the first of "
                f"the last ones: {first}"
            )
        return (
            f"{broken} of {total} images cannot be read so far ({len(new)} met just now), others are shown "
            f"instead; {where}; the first: {first}"
        )

    def _recheck(self) -> None:
        """Drop images from the report that were repaired since the run stopped."""
        before, names = self._files, self.images.names
        positions = [position for position, name in enumerate(names) if name in before]
        self._files = {names[position]: read_error(self.images, position) for position in positions}
        if self._files != before:
            self._write()

    def _write(self) -> str:
        """Write the report and name its path; a full disk must not stop one rank while the others wait."""
        if self.directory is None:
            return "nothing was written"
        path = self.directory / QUARANTINE
        try:
            write_text(path, quarantine_text(len(self.images), self._files))
        except OSError as error:
            return f"{path} cannot be written ({error.strerror})"
        return f"{path} names them"
