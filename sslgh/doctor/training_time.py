"""How long a run takes, from steps that are timed on this machine."""

import time
from contextlib import closing, nullcontext

from sslgh.data import ImageSet, num_workers
from sslgh.data.loader import PREFETCH
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.checkpoint import Progress
from sslgh.engine.finetuning import Finetuning
from sslgh.engine.launch import StopRequest, determinism, init_accelerator
from sslgh.engine.precision import with_precision
from sslgh.engine.pretraining import Pretraining
from sslgh.engine.trainer import step_info, train_step
from sslgh.recipe import Recipe

# The first timing is for choosing the batch of the second, one of whose steps takes this long at most (seconds).
FIRST_BATCH, STEP_SECONDS = 8, 2.0
TIMED_SECONDS = 6.0
# Epochs of a trial: more than are timed.
MANY = 10_000


def build_stage(recipe: Recipe, images: ImageSet) -> Pretraining | Finetuning:
    """The stage of a recipe on this machine's device, in its precision; raises as a run does."""
    accelerator = init_accelerator()
    kind = Pretraining if recipe.finetune is None else Finetuning
    return kind(with_precision(recipe, accelerator), accelerator, images)


def seconds_per_image(recipe: Recipe, images: ImageSet) -> float:
    """Seconds of training per image, loading included; checkpoints and refreshes of GH are not.

    A batch whose step takes longer than `STEP_SECONDS` is timed by a smaller one.

    Raises:
        ValueError: If the run cannot be built or its images cannot be read.
    """
    largest = min(recipe.train.batch_size // recipe.train.accumulation, len(images))
    pace = _timed(_trial(recipe, min(FIRST_BATCH, largest)), images, seconds=0)
    batch = max(int(STEP_SECONDS / pace), FIRST_BATCH)
    return _timed(_trial(recipe, min(batch, largest)), images, seconds=TIMED_SECONDS)


def _trial(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with a batch and epochs enough for it, without GH, whose epochs need a log."""
    train = {"batch_size": batch, "accumulation": 1, "epochs": MANY, "drop_last": True}
    changed = {"train": train, "optim": {"schedule": "cosine"}}
    parts = {name: getattr(recipe, name).model_copy(update=new) for name, new in changed.items()}
    return recipe.model_copy(update=parts | {"harmonize": None})


def _timed(recipe: Recipe, images: ImageSet, *, seconds: float) -> float:
    """Seconds per image; steps on batches that the loader had prepared before are not timed."""
    stage = build_stage(recipe, images)
    stage.run.model.train()
    prepared = PREFETCH * num_workers(recipe.data, in_memory=images.in_memory) if seconds else 0
    batches = stage.batches(Progress(), None)
    with closing(batches), determinism() if recipe.train.deterministic else nullcontext():
        _seconds_per_step(stage, batches, seconds, most=1 + prepared)
        return _seconds_per_step(stage, batches, seconds, most=MANY) / recipe.train.batch_size


def _seconds_per_step(
    stage: Pretraining | Finetuning, batches: BrokenImages, seconds: float, *, most: int
) -> float:
    """Mean over the steps that begin within ``seconds``: at least one, at ``most`` as many as given."""
    began, steps, passed = time.perf_counter(), 0, 0.0
    while steps < most and (not steps or passed < seconds):
        train_step(stage, batches, step_info(stage.run, Progress()), StopRequest())
        steps += 1
        passed = time.perf_counter() - began
    return passed / steps
