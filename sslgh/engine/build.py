"""From a recipe to the objects of a run."""

import torch

from sslgh.harmonize import GeometricHarmonizer, faiss_device
from sslgh.methods import METHODS, Method
from sslgh.models import build_backbone, globalise
from sslgh.recipe import Recipe, RecipeError, check_arguments
from sslgh.recipe.errors import unknown_key

SHAPE = ("features", "hidden", "out", "layers")


def build_method(recipe: Recipe, image_size: int) -> Method:
    """The method with its backbone, initialised from the recipe's seed.

    Raises:
        RecipeError: If the method is unknown or its arguments do not fit.
        ValueError: If the backbone cannot be built.
    """
    name, settings = recipe.method.name, recipe.model
    if name not in METHODS:
        raise RecipeError(f"method.name: {unknown_key(name, METHODS)}")
    kind = METHODS[name]
    arguments = check_arguments(kind, recipe.method.arguments, given=SHAPE, prefix="method")
    shape = settings.projector.model_dump(exclude_none=True)
    torch.manual_seed(recipe.seed)
    backbone = build_backbone(
        settings.backbone, stem=settings.stem, width=settings.width, image_size=image_size
    )
    method = kind(backbone, features=backbone.num_features, **shape, **arguments)
    if settings.batch_norm == "global":
        globalise(method)
    return method


def build_harmonizer(recipe: Recipe, num_samples: int, dim: int) -> GeometricHarmonizer | None:
    """The harmonizer, or None for the plain method.

    Raises:
        RecipeError: If there are more vertices than samples, or FAISS is needed and missing.
    """
    if recipe.harmonize is None:
        return None
    if recipe.harmonize.population == "faiss":
        try:
            faiss_device()
        except ImportError as error:
            raise RecipeError(str(error)) from None
    settings = recipe.harmonize.model_dump(exclude={"vertices", "warmup_epochs"})
    if recipe.harmonize.vertices > num_samples:
        raise RecipeError(
            f"harmonize.vertices is {recipe.harmonize.vertices}, but there are only {num_samples} images"
        )
    return GeometricHarmonizer(
        num_samples,
        dim,
        num_vertices=recipe.harmonize.vertices,
        warmup_epochs=recipe.gh_start or 0,
        seed=recipe.seed,
        **settings,
    )
