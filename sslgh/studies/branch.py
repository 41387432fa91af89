"""The warm-up of a block, and the arms that branch from its checkpoint.

The warm-up is the plain run of the recipe with the schedule of the full length, ended at the branch. It
remembers what each arm's harmonizer would have seen: an arm then trains as an uninterrupted run of its
own recipe does, to the same bits (`tests/studies/test_branch.py`).
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from sslgh.data import ImageSet
from sslgh.data.run_images import run_images
from sslgh.data.run_record import IMAGES
from sslgh.engine.build import build_harmonizer
from sslgh.engine.checkpoint import (
    AUX_STATE,
    MANIFEST,
    MODULE,
    DamagedError,
    check_manifest,
    copy_to_cpu,
    load_checkpoint,
    read_progress,
    write_checkpoint,
)
from sslgh.engine.checkpoint_manager import list_checkpoints
from sslgh.engine.logger import MetricLogger
from sslgh.engine.pretraining import Pretraining, pretrain
from sslgh.engine.run_dir import write_status, write_text
from sslgh.engine.trainer import Metrics, StepInfo
from sslgh.recipe import Recipe
from sslgh.recipe.run_recipe import RECIPE, run_text
from sslgh.studies.plan import OPEN, WARMUP, Study

IDENTITY, BANKS, ORIGIN = "warmup.json", "banks", "branched_from"
HARM = "harm."  # state of the alarm, which only arms with GH have


class WarmedUp(Exception):  # noqa: N818 - not an error: the warm-up has reached the branch
    """The last epoch before the branch is over, and its checkpoint is handed to the writer."""


class WarmUp(Pretraining):
    """Pretraining up to the branch, which also keeps the harmonizer of every arm up to date.

    Args:
        recipe: Recipe of the warm-up.
        accelerator: Accelerate's, which only the engine imports.
        images: Training set.
        end: Epoch in which the arms branch.
        arms: Recipe of every arm.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Any,
        images: ImageSet,
        *,
        end: int,
        arms: Mapping[str, Recipe],
    ) -> None:
        super().__init__(recipe, accelerator, images)
        self.end = end
        width = self.method.embedding_dim
        self.banks = {
            name: build_harmonizer(arm, len(images), width).to(accelerator.device)
            for name, arm in arms.items()
            if arm.harmonize is not None
        }
        self.aux.add_module(BANKS, nn.ModuleDict(self.banks))  # saved with every checkpoint

    def begin_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Begin an epoch for every harmonizer too.

        Raises:
            WarmedUp: If it is the first one after the branch.
        """
        if epoch == self.end:
            raise WarmedUp
        super().begin_epoch(epoch, global_step, logger)
        for bank in self.banks.values():
            bank.begin_epoch(epoch)

    def after_step(self, step: StepInfo) -> Metrics:
        """Store the embeddings in every harmonizer too."""
        outputs = list(self.outputs)
        metrics = super().after_step(step)
        for output, index in outputs:
            for bank in self.banks.values():
                bank.observe(output.embeddings[0], index)
        return metrics


def train_warmup(study: Study, recipes: Mapping[str, Recipe], accelerator: Any) -> Path:
    """The checkpoint from which the arms of a block branch, trained if it is not there.

    Args:
        study: The plan.
        recipes: Recipes of the block, as `block_recipes` gives them.
        accelerator: Device; one process.

    Raises:
        ValueError: If the recipe or its data cannot be used.
        Stopped: After saving, if a signal came.
        OSError: If the checkpoint could not be written.
    """
    recipe = recipes[WARMUP]
    if (found := find_warmup(study, recipes)) is not None:
        return found
    directory = recipe.directory
    if _identity_in(directory) != _identity(study, recipes):
        shutil.rmtree(
            directory, ignore_errors=True
        )  # without the bank of an arm, or of another plan
    directory.parent.mkdir(parents=True, exist_ok=True)
    write_text(directory.parent / IDENTITY, _identity(study, recipes))
    arms = {arm.name: recipes[arm.name] for arm in study.arms}
    stage = partial(WarmUp, end=study.warmup_epochs, arms=arms)
    with contextlib.suppress(WarmedUp):
        pretrain(recipe, accelerator, stage)
    write_status(directory, "stopped", "the arms of a study branch here")
    found = find_warmup(study, recipes)
    if found is None:
        raise OSError(
            f"the checkpoint of epoch {study.warmup_epochs} is not in {directory / 'checkpoints'}; make room, then run "
            "the same command"
        )
    return found


def find_warmup(study: Study, recipes: Mapping[str, Recipe]) -> Path | None:
    """The whole checkpoint at the branch; None if it is missing, damaged, or of other recipes."""
    directory = recipes[WARMUP].directory
    if _identity_in(directory) != _identity(study, recipes):
        return None
    for path in reversed(list_checkpoints(directory / "checkpoints")):
        with contextlib.suppress(DamagedError, FileNotFoundError):
            check_manifest(path)
            progress, _ = read_progress(path)
            if (progress.epoch, progress.step_in_epoch) == (study.warmup_epochs, 0):
                return path
    return None


def _identity(study: Study, recipes: Mapping[str, Recipe]) -> str:
    """All that decides a warm-up: its recipe without what may differ between machines, and every arm's harmonizer."""
    places: Any = {"name": True, "run_dir": True, "probe": True}
    for key in OPEN:
        section, name = key.split(".")
        places.setdefault(section, set()).add(name)
    settings = recipes[WARMUP].model_dump(mode="json", exclude=places)
    banks = {
        arm.name: gh.model_dump(mode="json")
        for arm in study.arms
        if (gh := recipes[arm.name].harmonize) is not None
    }
    return json.dumps({"recipe": settings, "banks": banks}, indent=1) + "\n"


def _identity_in(directory: Path) -> str | None:
    """`_identity` of the warm-up in a directory; None if there is none."""
    try:
        return (directory.parent / IDENTITY).read_text()
    except FileNotFoundError:
        return None


def warmup_hash(checkpoint: Path) -> str:
    """SHA-256 of the weights in a checkpoint whose manifest was checked."""
    digest: str = json.loads((checkpoint / MANIFEST).read_text())["files"][MODULE]["sha256"]
    return digest


def branch(recipe: Recipe, name: str, checkpoint: Path, accelerator: Any) -> None:
    """Make the run directory of an arm, which resumes where the warm-up ended.

    It is made under another name and renamed: a directory with the arm's name is whole.

    Args:
        recipe: Recipe of the arm.
        name: Name of the arm, and of its bank in the checkpoint.
        checkpoint: Checkpoint of the warm-up.
        accelerator: Device; one process.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
    """
    warmup = checkpoint.parents[1]
    temporary = recipe.directory.with_name(f".{recipe.directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "checkpoints").mkdir(parents=True)
    shutil.copy(warmup / IMAGES, temporary / IMAGES)
    images = run_images(recipe.model_copy(update={"run_dir": temporary}))  # those of the warm-up
    made = Pretraining(recipe, accelerator, images)
    run, aux = made.run, made.aux
    load_checkpoint(checkpoint, module=run.module, aux_state=None, optimizer=run.optimizer)
    fresh = {
        k: v for k, v in aux.state_dict().items() if k.startswith(HARM)
    }  # a new watch from here
    aux.load_state_dict(fresh | _own(load_file(checkpoint / AUX_STATE), name))
    snapshot = copy_to_cpu(*read_progress(checkpoint), run.module, aux, run.optimizer)
    write_checkpoint(temporary / "checkpoints", snapshot)
    write_text(temporary / RECIPE, run_text(recipe))
    write_text(temporary / ORIGIN, warmup_hash(checkpoint))
    temporary.rename(recipe.directory)


def branched_from(recipe: Recipe) -> str | None:
    """`warmup_hash` of the checkpoint from which a run directory was made; None if there is none."""
    try:
        return (recipe.directory / ORIGIN).read_text()
    except FileNotFoundError:
        return None


def _own(tensors: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Auxiliary state of an arm: that of the warm-up, its harmonizer replaced by the arm's bank."""
    bank = f"{BANKS}.{name}."
    replaced = f"{BANKS}.", "harmonizer.", HARM
    shared = {k: v for k, v in tensors.items() if not k.startswith(replaced)}
    own = {
        f"harmonizer.{k.removeprefix(bank)}": v for k, v in tensors.items() if k.startswith(bank)
    }
    return shared | own
