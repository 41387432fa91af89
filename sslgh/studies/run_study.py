"""Run a study: the arms of every block that have no result yet, interruptible at any time."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from sslgh.engine.exit_codes import NotFiniteError, Stopped
from sslgh.engine.launch import StopRequest, init_accelerator
from sslgh.engine.logger import print_stderr
from sslgh.engine.precision import with_precision
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import BusyError, acquire_lock, read_metrics
from sslgh.evaluation import check_probes, probe_backbone
from sslgh.models import load_backbone
from sslgh.recipe import Recipe, RecipeError
from sslgh.recipe.loading import PACKAGE
from sslgh.studies.branch import branch, branched_from, find_warmup, train_warmup, warmup_hash
from sslgh.studies.measure import diagnostics, result_metrics, training_seconds
from sslgh.studies.oracles import ORACLES
from sslgh.studies.plan import WARMUP, Arm, Study, StudyBlock, block_recipes
from sslgh.studies.records import ArmResult, Records, read_records, write_record

GO_ON = "run the same command to go on"


class Places(NamedTuple):
    """Where a study reads and writes.

    Attributes:
        results: Folder of the JSON files.
        runs: Folder of the run directories; not needed for blocks that are complete.
    """

    results: Path
    runs: Path


class StudyRun:
    """A study in this process; several processes may run the same one.

    Args:
        study: The plan.
        places: Folders of the study.
        overrides: Checked overrides of the command line.
        blocks: Blocks to run; the others are left to other processes.

    Raises:
        RecipeError: If the recipe of an arm is broken or cannot branch, or a result is of another study.
        DataError: If the data cannot serve the probes.
        LaunchError: If several processes were started as one.
    """

    def __init__(
        self, study: Study, places: Places, overrides: Sequence[str], blocks: Sequence[StudyBlock]
    ) -> None:
        self.study, self.places, self.blocks = study, places, blocks
        self.recipes = {
            block.name: block_recipes(study, block, places.runs / block.name, overrides)
            for block in blocks
        }
        self.records()
        first = self.recipes[blocks[0].name][WARMUP]
        check_metrics(study, first)
        check_probes(first.data, first.probe)
        self.accelerator = init_accelerator(1)
        self.recipes = {name: self._with_precision(found) for name, found in self.recipes.items()}
        self.failures: dict[str, str] = {}

    def _with_precision(self, recipes: dict[str, Recipe]) -> dict[str, Recipe]:
        """Recipes of a block, all with the precision that its warm-up has or will have."""
        decided = with_precision(recipes[WARMUP], self.accelerator).train.precision
        return {
            name: recipe.model_copy(
                update={"train": recipe.train.model_copy(update={"precision": decided})}
            )
            for name, recipe in recipes.items()
        }

    def records(self) -> Records:
        """All results so far, those of other processes too."""
        return read_records(self.study, self.places.results)

    def run(self, minutes: float | None = None) -> None:
        """Fill every cell; after ``minutes`` stop as by a signal.

        Raises:
            Stopped: If a signal came, time is up, or other processes still work on blocks.
            NotFiniteError: After all others, if an arm could not be trained.
        """
        with StopRequest() as stop, time_limit(minutes):
            while (busy := self._pass(stop)) is None:
                pass
        if self.failures:
            raise NotFiniteError("; ".join(f"{k}: {v}" for k, v in self.failures.items()))
        if busy:
            raise Stopped(
                f"other processes work on block {', '.join(busy)}; all others are complete, {GO_ON}"
            )

    def _pass(self, stop: StopRequest) -> list[str] | None:
        """Fill the first cell that is empty and free; None if there was one, else the names of locked blocks."""
        busy: list[str] = []
        for arm, block in self.empty_cells():
            if block.name in busy:
                continue
            try:
                with self._locked(block):
                    if (arm, block) in self.empty_cells():  # another process may have filled it
                        self._fill(arm, block)
            except BusyError:
                busy.append(block.name)
                continue
            if stop.asked:
                raise Stopped(f"stopped between two arms; {GO_ON}")
            return None
        return busy

    def empty_cells(self) -> list[tuple[Arm, StudyBlock]]:
        """Arms of this process's blocks without a result that can be paired with those of their block, in order."""
        records = self.records()
        wanted = {block.name: self._wanted_warmup(block, records) for block in self.blocks}
        return [
            (arm, block)
            for arm, block in self.study.cells()
            if block in self.blocks and _cell(arm, block) not in self.failures
            if (record := records.get((block.name, arm.name))) is None
            or record.warmup != wanted[block.name]
        ]

    def _wanted_warmup(self, block: StudyBlock, records: Records) -> str | None:
        """Hash of the weights from which the arms of a block branch; None if the warm-up has still to be trained."""
        checkpoint = find_warmup(self.study, self.recipes[block.name])
        if checkpoint is not None:
            return warmup_hash(checkpoint)
        # A block whose warm-up is gone stays as it is while all its results fit together.
        digests = {record.warmup for (name, _), record in records.items() if name == block.name}
        return digests.pop() if len(digests) == 1 else None

    @contextmanager
    def _locked(self, block: StudyBlock) -> Iterator[None]:
        folder = self.places.runs / block.name
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(folder, timeout=0)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _fill(self, arm: Arm, block: StudyBlock) -> None:
        """Train and measure an arm of a block, after the warm-up if that is not there."""
        recipes = self.recipes[block.name]
        if find_warmup(self.study, recipes) is None:
            print_stderr(f"{self.study.name}: block {block.name}, warm-up")
            train_warmup(self.study, recipes, self.accelerator)
            return  # with other weights than before, earlier arms come first
        checkpoint = train_warmup(self.study, recipes, self.accelerator)
        print_stderr(f"{self.study.name}: block {block.name}, arm {arm.name} ({arm.about})")
        recipe, digest = recipes[arm.name], warmup_hash(checkpoint)
        try:
            self._train(arm, recipe, checkpoint, digest)
        except NotFiniteError as error:  # the other arms do not depend on it
            self.failures[_cell(arm, block)] = str(error)
            print_stderr(f"{_cell(arm, block)}: {error}; the others go on")
            return
        write_record(self.places.results, self._measured(arm, block, recipe, digest))
        for folder in ("checkpoints", "features"):  # of eighty runs they would fill a disk
            shutil.rmtree(recipe.directory / folder, ignore_errors=True)

    def _train(self, arm: Arm, recipe: Recipe, checkpoint: Path, digest: str) -> None:
        """Train an arm from the warm-up, or resume it if it branched from the same one."""
        if branched_from(recipe) != digest:
            shutil.rmtree(recipe.directory, ignore_errors=True)
            branch(recipe, arm.name, checkpoint, self.accelerator)
        pretrain(recipe, self.accelerator, ORACLES.get(arm.oracle or ""))

    def _measured(self, arm: Arm, block: StudyBlock, recipe: Recipe, digest: str) -> ArmResult:
        began = time.perf_counter()
        backbone, _ = load_backbone(recipe.directory)
        directory = recipe.directory
        results = probe_backbone(
            backbone, recipe, directory=directory, accelerator=self.accelerator
        )
        lines = read_metrics(directory)
        training = training_seconds(lines, recipe, self.study.warmup_epochs)
        versions = json.loads((directory / "environment.json").read_text())["versions"]
        return ArmResult(
            study=self.study.name,
            design=self.study.design_hash(arm, block),
            hypotheses=self.study.hypotheses_hash(),
            block=block.name,
            arm=arm.name,
            warmup=digest,
            precision=recipe.train.precision,
            device=self.accelerator.device.type,
            threads=torch.get_num_threads(),
            commit=commit(),
            versions=versions,
            seconds={"training": training, "probing": round(time.perf_counter() - began, 1)},
            metrics=result_metrics(results),
            diagnostics=diagnostics(lines),
        )


def _cell(arm: Arm, block: StudyBlock) -> str:
    return f"arm {arm.name} of block {block.name}"


def check_metrics(study: Study, recipe: Recipe) -> None:
    """Refuse metrics that no probe of the recipe gives, before hours of training.

    Raises:
        RecipeError: If a protocol of a metric is not probed, or one is probed twice.
    """
    protocols = [probe.protocol for probe in recipe.probe]
    if repeated := [name for name in protocols if protocols.count(name) > 1]:
        raise RecipeError(
            f"study {study.name}: recipe.probe lists {repeated[0]} twice; a metric names one"
        )
    for metric in (*study.metrics, *(hypothesis.metric for hypothesis in study.hypotheses)):
        if metric.split(".")[0] not in protocols:
            raise RecipeError(
                f"study {study.name}: the metric {metric} needs the probe {metric.split('.')[0]}, but recipe.probe has "
                f"{', '.join(protocols) or 'none'}; add it"
            )


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Send this process the signal to stop once ``minutes`` have passed; None: never."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(minutes * 60, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def commit() -> str | None:
    """Commit of sslgh's files, with "+changes" if they differ from it; None outside of a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--", ".")
    return f"{head}+changes" if head and changed else head or None


def chosen_blocks(study: Study, numbers: str | None) -> list[StudyBlock]:
    """Blocks of a list of numbers from 0, such as "0,3"; None: all.

    Raises:
        RecipeError: If a number is no block, or is given twice.
    """
    if numbers is None:
        return list(study.blocks)
    chosen: list[StudyBlock] = []
    for word in numbers.split(","):
        if not word.isdecimal() or int(word) >= len(study.blocks):
            raise RecipeError(
                f"--block {numbers}: expected numbers from 0 to {len(study.blocks) - 1} with commas, got {word!r}"
            )
        chosen.append(study.blocks[int(word)])
    if repeated := [block.name for block in chosen if chosen.count(block) > 1]:
        raise RecipeError(f"--block {numbers} names block {repeated[0]} twice; leave one out")
    return chosen
