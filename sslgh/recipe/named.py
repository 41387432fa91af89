"""Recipes as a command line names them: by file, or by the name of one that comes with sslgh."""

import difflib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from sslgh.recipe.errors import LONGEST_SHOWN, RecipeError, shown, some_of
from sslgh.recipe.loading import PACKAGE, load_recipe, parse, split_words
from sslgh.recipe.schema import Recipe


def load_recipes(words: Sequence[str], *, gh: bool = False) -> list[Recipe]:
    """Load the recipes that ``words`` name, with their ``key=value`` overrides; ``gh``: as their GH twins.

    Raises:
        RecipeError: If none is named, one is broken, or two share a run directory.
    """
    names, overrides = split_words(words)
    if not names:
        raise RecipeError("no recipe given; sslgh recipe list names those that exist")
    recipes = [load_recipe(find_recipe(name), overrides, gh=gh) for name in names]
    if len({recipe.directory for recipe in recipes}) < len(recipes):
        raise RecipeError(
            "two of the recipes share a run directory; leave run_dir out, and give each a name of its own"
        )
    return recipes


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, else a bundled recipe (``folder/simclr``, ``recipes/folder/simclr.yaml``).

    Raises:
        RecipeError: If there is none; it suggests the nearest name.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        bundled = recipe_root() / f"{_bundled_name(path)}.yaml"
        if bundled.is_file():
            return bundled
        if path.is_dir():
            raise RecipeError(_meant_by_folder(path))
        if path.exists():  # a pipe, of which reading says more
            return path
    except OSError as error:  # too long for a name, or a folder that must not be entered
        raise RecipeError(f"{shown(name)}: cannot be read ({error.strerror})") from None
    raise RecipeError(f"{shown(name)}: no such recipe; {_suggestion(_bundled_name(path))}")


def _bundled_name(path: Path) -> str:
    name = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    return name.as_posix().removeprefix("recipes/")


def _meant_by_folder(folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    if (folder / "recipe.yaml").is_file():
        recipe = shlex.quote(str(folder / "recipe.yaml"))
        return (
            f"{folder} is a run directory, not a recipe; sslgh probe {quoted} evaluates it, and its "
            f"recipe is {recipe}"
        )
    return (
        f"{folder} is a folder, not a recipe; to train on the images in it: "
        f"sslgh run folder/simclr-gh {shlex.quote(f'data.root={_value(str(folder))}')}"
    )


def _value(text: str) -> str:
    """A text as an override gives it, in quotes where YAML would read it as something else (2024)."""
    try:
        return text if parse(text, text) == text else json.dumps(text)
    except RecipeError:
        return json.dumps(text)


def _suggestion(name: str) -> str:
    names = [recipe_name(path) for path in recipe_files()]
    same = [known for known in names if known.split("/")[1] == name]
    # The comparison is quadratic in the length.
    near = same or difflib.get_close_matches(name[:LONGEST_SHOWN], names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {some_of(near)}?"
    return "sslgh recipe list names those that exist"


def recipe_root() -> Path:
    """The folder of bundled recipes: in the installed package, or in the checkout.

    Raises:
        RecipeError: If there is none.
    """
    # A checkout has none in the package; next to an installed one may lie those of another package.
    for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError("no recipes are installed; give the path of a recipe file")


def recipe_files() -> list[Path]:
    """All bundled recipes, sorted; settings of the launcher are not recipes."""
    return sorted(
        path for path in recipe_root().glob("*/*.yaml") if path.parent.name != "accelerate"
    )


def recipe_name(path: Path) -> str:
    """The name of a bundled recipe, which every command takes from any directory."""
    return f"{path.parent.name}/{path.stem}"


def recipe_lines() -> Iterator[str]:
    """Name, method, GH and length of every bundled recipe."""
    for path in recipe_files():
        recipe = load_recipe(path)
        if recipe.finetune is not None:
            kind, gh = str(recipe.finetune.objective), "supervised"
        else:
            assert recipe.method is not None
            kind = recipe.method.name + ("" if recipe.boost is None else " boosted")
            block = recipe.harmonize
            gh = "plain, --gh" if block is None else f"+GH {block.population}"
        yield f"{recipe_name(path):<35} {kind:<15} {gh:<15} {recipe.train.epochs} epochs"
