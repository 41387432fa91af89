"""The typed recipe: schema, loading, overrides."""

from sslgh.recipe.data import Data
from sslgh.recipe.errors import RecipeError
from sslgh.recipe.finetune import Finetune
from sslgh.recipe.harmonize import Harmonize
from sslgh.recipe.loading import check_arguments, load_recipe, make_recipe, recipe_text
from sslgh.recipe.schema import Optim, Probe, Recipe

__all__ = [
    "Data",
    "Finetune",
    "Harmonize",
    "Optim",
    "Probe",
    "Recipe",
    "RecipeError",
    "check_arguments",
    "load_recipe",
    "make_recipe",
    "recipe_text",
]
