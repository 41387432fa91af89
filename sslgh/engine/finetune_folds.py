"""Further networks that estimate the accuracy of a finetuning where there are no labeled test images.

Each is a run of its own in ``folds/`` of the run, trained on the images of all folds but one. Shapes: N images.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from sslgh.classify.selection import NEVER, stratified_folds
from sslgh.data import load_images, training_set
from sslgh.data.folds import FOLDS, fold_data, fold_files
from sslgh.data.run_images import trained_images
from sslgh.engine.finetuning import finetune
from sslgh.engine.kept_init import with_kept_init
from sslgh.recipe import Recipe


def estimated_by_folds(recipe: Recipe) -> bool:
    """Whether a finetuning has to be estimated on its training images, and is to be."""
    if recipe.finetune is None or recipe.finetune.folds is None:
        return False
    test = load_images(recipe.data, "test")
    return test is None or test.labels is None


def finetune_folds(recipe: Recipe, accelerator: Accelerator) -> None:
    """Train, or resume, a network for every fold of a trained run. Collective: call it on every rank.

    Nothing is trained if every class has a single image: none could be held out.

    Raises:
        Stopped: After saving, if a signal came; the other errors are those of `finetune`.
    """
    if accelerator.is_main_process:
        _write_folds(recipe)
    accelerator.wait_for_everyone()
    assert recipe.finetune is not None
    without_folds = recipe.finetune.model_copy(update={"folds": None})
    start, files = recipe, fold_files(recipe.directory)
    if recipe.model.init is not None:
        start = with_kept_init(recipe, began=True)
    for file in files:
        accelerator.print(
            f"{recipe.name}: network {file.stem} of {len(files)} for the out-of-fold estimate"
        )
        changes = {
            "name": f"{recipe.name}-fold-{file.stem}",
            "run_dir": file.with_suffix(""),
            "data": fold_data(start.data, file),
            "finetune": without_folds,
            "probe": (),
        }
        finetune(start.model_copy(update=changes), accelerator)


def _write_folds(recipe: Recipe) -> None:
    """For every fold the positions of the other folds' images, where that has not been done."""
    folder = recipe.directory / FOLDS
    if folder.is_dir():
        return
    assert recipe.finetune is not None
    assert recipe.finetune.folds is not None
    images, _ = trained_images(recipe.directory, recipe.data)
    labels = torch.from_numpy(images.labels)
    if torch.bincount(labels).max() < 2:
        return
    part = stratified_folds(labels, recipe.finetune.folds, seed=recipe.seed).numpy()
    # The run may lack images that the source has by now: positions are those of the source.
    whole = training_set(recipe.data.model_copy(update={"subset": None}))
    place = {name: position for position, name in enumerate(whole.names)}
    positions = np.array([place[name] for name in images.names])
    temporary = Path(f"{folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for number, fold in enumerate(np.unique(part[part != NEVER]), 1):
        lines = positions[part != fold].tolist()
        (temporary / f"{number}.txt").write_text("\n".join(map(str, lines)) + "\n")
    temporary.rename(folder)
