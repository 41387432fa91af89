"""Pretraining of a module of your own, in Python."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from sslgh.data import input_size, training_set
from sslgh.engine.kept_init import with_interpolation
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import Pretraining, pretrain
from sslgh.engine.run_dir import check_directory
from sslgh.models.backbones import OWN
from sslgh.models.library_backbones import UNFIT, with_features
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Recipe, RecipeError, load_recipe
from sslgh.recipe.named import load_recipes
from sslgh.recipe.run_recipe import RECIPE
from sslgh.recipe.schema import Model


def pretrain_backbone(
    recipe: Recipe | str | Path, overrides: Sequence[str] = (), *, backbone: nn.Module
) -> Path:
    """Pretrain a module of your own by a recipe, or resume its run. Collective: call it on every rank.

    The run directory is that of any run. Its card names the class, as only you can build the module: give it to
    ``load_backbone(directory, module=...)``, in a shape of the same parameters.

    Args:
        recipe: A recipe, or its name as on the command line.
        overrides: Settings such as ``"train.epochs=20"``.
        backbone: (N, 3, S, S) to (N, F), or to maps or tokens, which are averaged; trained in place. Its attribute
            ``preprocessing`` (`sslgh.preprocessing.Preprocessing`) is used if it has one, else ImageNet's.

    Returns:
        The run directory.

    Raises:
        ValueError: If the recipe, the data or the module cannot be used.
        Stopped: After saving, if SIGTERM, SIGINT or SIGUSR1 came.

    Examples:
        >>> directory = pretrain_backbone("digits-lt/simclr", backbone=MyNet())  # doctest: +SKIP
        >>> backbone, card = load_backbone(directory, module=MyNet())  # doctest: +SKIP
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipes([str(recipe), *overrides])[0]
    if recipe.model.init is not None:
        raise RecipeError(
            "model.init: a module of your own has the weights that you give it; leave model.init out"
        )
    kind = type(backbone)
    kept = recipe.model.model_dump(include={"checkpointing", "projector", "batch_norm"})
    model = Model(backbone=f"{OWN}{kind.__module__}.{kind.__qualname__}", **kept)
    recipe = recipe.model_copy(update={"model": model})
    side = input_size(recipe.data, training_set(recipe.data), None)
    try:
        with_features(backbone, side)
    except UNFIT as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{kind.__qualname__} makes no features of two images (2, 3, {side}, {side}): {reason}"
        ) from None
    if recipe.data.augment.interpolation is None:
        recipe = with_interpolation(recipe, _interpolation(recipe, backbone))
    stage = partial(Pretraining, backbone=backbone)
    return pretrain(recipe, init_accelerator(recipe.train.processes), stage)


def _interpolation(recipe: Recipe, backbone: nn.Module) -> str | None:
    """Interpolation that the run in the directory began with, or that the module states; None: bilinear."""
    if check_directory(recipe):
        return load_recipe(recipe.directory / RECIPE).data.augment.interpolation
    stated = Preprocessing.of(backbone).interpolation
    return None if stated == Preprocessing().interpolation else stated
