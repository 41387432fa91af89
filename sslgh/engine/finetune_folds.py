"""Further networks that estimate the accuracy of a finetuning where there are no labeled test images.

Each is a run of its own in ``folds/`` of the run, trained on the images of all folds but one. Shapes: N images.
"""

from pathlib import Path

import torch
from accelerate import Accelerator

from sslgh.classify.selection import NEVER, stratified_folds
from sslgh.data import load_images, training_set
from sslgh.data.folds import fold_data, read_folds, write_folds
from sslgh.data.run_images import trained_images
from sslgh.engine.finetuning import finetune
from sslgh.engine.kept_init import with_kept_init
from sslgh.engine.run_dir import write_text
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
    if accelerator.is_main_process and not read_folds(recipe.directory):
        _draw_folds(recipe)
    accelerator.wait_for_everyone()
    assert recipe.finetune is not None
    without_folds = recipe.finetune.model_copy(update={"folds": None})
    start, folds = recipe, read_folds(recipe.directory)
    if recipe.model.init is not None:
        start = with_kept_init(recipe, began=True)
    for network, held_out in folds.items():
        accelerator.print(
            f"{recipe.name}: network {network.name} of {len(folds)} for the out-of-fold estimate"
        )
        if accelerator.is_main_process:
            _write_positions(recipe, network, held_out)
        accelerator.wait_for_everyone()
        changes = {
            "name": f"{recipe.name}-fold-{network.name}",
            "run_dir": network,
            "data": fold_data(start.data, network),
            "finetune": without_folds,
            "probe": (),
        }
        finetune(start.model_copy(update=changes), accelerator)


def _draw_folds(recipe: Recipe) -> None:
    """Stratified folds of the run's images; an image that is listed twice is in one of them."""
    assert recipe.finetune is not None
    assert recipe.finetune.folds is not None
    images, _ = trained_images(recipe.directory, recipe.data)
    labels = torch.from_numpy(images.labels)
    if torch.bincount(labels).max() < 2:
        return
    part = stratified_folds(labels, recipe.finetune.folds, seed=recipe.seed).tolist()
    fold_of: dict[str, int] = {}
    for name, fold in zip(images.names, part, strict=True):
        fold_of[name] = NEVER if NEVER in (fold, fold_of.get(name)) else fold_of.get(name, fold)
    folds = sorted(set(fold_of.values()) - {NEVER})
    names = [[name for name, of in fold_of.items() if of == fold] for fold in folds]
    write_folds(recipe.directory, names)


def _write_positions(recipe: Recipe, network: Path, held_out: frozenset[str]) -> None:
    """Positions, in the source as it is now, of the run's images that a fold does not hold out."""
    images, _ = trained_images(recipe.directory, recipe.data)
    kept = set(images.names) - held_out
    whole = training_set(recipe.data.model_copy(update={"subset": None}))
    lines = [str(position) for position, name in enumerate(whole.names) if name in kept]
    write_text(network.with_suffix(".txt"), "\n".join(lines) + "\n")
