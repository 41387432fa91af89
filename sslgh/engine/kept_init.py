"""What a run keeps of the weights that `model.init` names, so that it resumes without them."""

import filecmp
import os
import shutil
from pathlib import Path

from sslgh.models.initial import initial_card
from sslgh.models.serialization import CARD, WEIGHTS, run_of
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Recipe, load_recipe
from sslgh.recipe.run_recipe import RECIPE, absolute_init

INIT = "init"
FILES = (CARD, WEIGHTS)


def keep_init(recipe: Recipe) -> None:
    """Keep the backbone of the run that `model.init` names, by hard links where that can be done. Rank 0 only."""
    source, kept = run_of(recipe.model.init), recipe.directory / INIT
    if source is None or kept.exists():
        return
    temporary = kept.with_name(f"{INIT}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in FILES:
        # Weights are only ever replaced by name: a link keeps what they were.
        try:
            os.link(source / name, temporary / name)
        except OSError:
            shutil.copy(source / name, temporary / name)
    temporary.rename(kept)


def with_kept_init(recipe: Recipe, *, began: bool) -> Recipe:
    """The recipe with the interpolation of its weights, if it states none for training crops.

    If its `model.init` has gone since the run began, with the copy of it.

    Args:
        recipe: The recipe, with ``model.init``.
        began: Whether the run in the directory took a step: it keeps its interpolation.

    Raises:
        ValueError: If ``model.init`` names no weights.
    """
    recipe = _with_copy(recipe)
    if recipe.data.augment.interpolation is not None:
        return recipe
    return with_interpolation(recipe, _interpolation(recipe, began=began))


def with_interpolation(recipe: Recipe, interpolation: str | None) -> Recipe:
    """The recipe with an interpolation of training crops."""
    augment = recipe.data.augment.model_copy(update={"interpolation": interpolation})
    data = recipe.data.model_copy(update={"augment": augment})
    return recipe.model_copy(update={"data": data})


def _interpolation(recipe: Recipe, *, began: bool) -> str:
    """That of the run in the directory, which may have begun before weights had one, or of the weights."""
    if began:
        return load_recipe(recipe.directory / RECIPE).data.augment.interpolation or "bilinear"
    return Preprocessing.from_card(initial_card(recipe.model)).interpolation


def _with_copy(recipe: Recipe) -> Recipe:
    init, kept = recipe.model.init, recipe.directory / INIT
    if init is None or run_of(init) is not None or not (kept / CARD).is_file():
        return recipe
    # The directory may be taken over from a run that began with other weights.
    if load_recipe(recipe.directory / RECIPE).model.init != absolute_init(init):
        return recipe
    model = recipe.model.model_copy(update={"init": str(kept)})
    return recipe.model_copy(update={"model": model})


def is_kept_init(directory: Path, init: object) -> bool:
    """Whether `model.init` names the same backbone that the run in a directory began with."""
    source, kept = run_of(init), directory / INIT
    if source is None or not all((kept / name).is_file() for name in FILES):
        return False
    return all(filecmp.cmp(source / name, kept / name, shallow=False) for name in FILES)
