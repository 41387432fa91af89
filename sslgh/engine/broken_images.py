"""Training goes on over broken files, and the run directory says which."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sslgh.data import DataError, ImageSet, PretrainBatch, SupervisedBatch, end_workers
from sslgh.data.quarantined import (
    QUARANTINE,
    READS_NOW,
    quarantine_text,
    quarantined,
    reason,
    unreadable,
)
from sslgh.distributed import any_rank, dist_info
from sslgh.engine.launch import run_on_main
from sslgh.engine.run_dir import write_text
from sslgh.recipe.printable import printable

Batch = PretrainBatch | SupervisedBatch
# 0.29 * 100 is a little less than 29.
ROUNDING = 1e-6


class BrokenImages(Iterator[Batch]):
    """A loader's batches; remembers which images are broken.

    A process that finds hardly any readable image gives its last batch again: raising an error alone
    would leave the others waiting in a collective. The next `check`, which comes before anything is
    saved, stops them all.

    Args:
        batches: Of `view_loader` or `labeled_loader`.
        images: The training set.
        share: The recipe's ``data.broken_share``.
        directory: The run directory, where what was found before is read; None: nothing is written.
        device: Where the processes agree.

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
        # What was found before a stop is judged again as soon as it is met: a run that stopped because
        # of too many goes on only if they were repaired.
        self._known: set[int] = set()
        self._new: set[int] = set()
        self._files = {} if directory is None else quarantined(directory)
        if self._files and dist_info().rank == 0:
            self._look_again()

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
        # Every process asks for its first batch: without one there is nothing to give again.
        if first and any_rank(self._failure is not None, self.device):
            raise DataError(next(why for why in gather_object([self._failure]) if why is not None))
        assert self._last is not None
        return self._last

    def end(self) -> None:
        """End the loader's workers now."""
        end_workers(self.batches)

    @property
    def news(self) -> bool:
        """Whether this process has found something since the last check."""
        return bool(self._new) or self.failed

    @property
    def failed(self) -> bool:
        """Whether this process has no images left to train on; the next check raises."""
        return self._failure is not None

    def check(self, accelerator: Accelerator) -> str | None:
        """Agree on what was found since the last check. Collective: call it on every rank, cheap when it is nothing.

        Process 0 writes ``quarantine.json``. Due before a checkpoint is saved.

        Returns:
            A sentence on what is new; None where nothing is.

        Raises:
            DataError: On every process, if more than ``share`` of the images are broken, or hardly any
                can be read.
        """
        if not any_rank(self.news, self.device):
            return None
        found = gather_object([(sorted(self._new), self._failure)])
        new = sorted({position for positions, _ in found for position in positions})
        failure = next((why for _, why in found if why is not None), None)
        self._known.update(new)
        self._new.clear()
        return run_on_main(lambda: self._judged(new, failure), accelerator)

    def _judged(self, new: list[int], failure: str | None) -> str:
        """Write down what is new, and judge all that is known; process 0 only.

        Raises:
            DataError: If it is too much.
        """
        found = {self.images.names[position]: reason(self.images, position) for position in new}
        self._files |= found
        where = self._write()
        if failure is not None:
            raise DataError(f"{failure}; {where}")
        # By position: the lines of a list may name one file many times.
        names, total = frozenset(unreadable(self._files)), len(self.images)
        broken = sum(name in names for name in self.images.names)
        name = min(unreadable(found) or found)
        first = found[name] if found[name] != READS_NOW else f"{printable(name)} {READS_NOW}"
        # Where no file may be broken, neither may one that was so for a moment.
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

    def _look_again(self) -> None:
        """Notice what was repaired since the run stopped."""
        before, names = self._files, self.images.names
        positions = [position for position, name in enumerate(names) if name in before]
        self._files = {names[position]: reason(self.images, position) for position in positions}
        if self._files != before:
            self._write()

    def _write(self) -> str:
        """Write the report; a sentence's part on where it is.

        A full disk must not stop one process while the others wait.
        """
        if self.directory is None:
            return "nothing was written"
        path = self.directory / QUARANTINE
        try:
            write_text(path, quarantine_text(len(self.images), self._files))
        except OSError as error:
            return f"{path} cannot be written ({error.strerror})"
        return f"{path} names them"
