"""The recipes that come with sslgh."""

from pathlib import Path

from sslgh.recipe.errors import RecipeError

PACKAGE = Path(__file__).resolve().parents[1]


def recipe_root() -> Path:
    """The folder of the recipes: of the working folder, the checkout, or the installed package.

    Raises:
        RecipeError: If there is none.
    """
    for folder in (Path("recipes"), PACKAGE.parent / "recipes", PACKAGE / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError("no recipes folder here and none installed; give the path of a recipe file")


def recipe_files() -> list[Path]:
    """All bundled recipes, sorted; settings of the launcher are not recipes."""
    return sorted(
        path for path in recipe_root().glob("*/*.yaml") if path.parent.name != "accelerate"
    )


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path, or by the name of a bundled one such as digits-lt/simclr.

    Raises:
        RecipeError: If it can be the name of no file.
    """
    path = Path(name)
    try:
        if path.is_file() or path.suffix in (".yaml", ".yml"):
            return path
        bundled = recipe_root() / f"{name}.yaml"
        return bundled if bundled.is_file() else path
    except RecipeError:
        return path
    except OSError as error:  # longer than a name may be
        raise RecipeError(f"{name[:40]}...: no recipe: {error.strerror}") from None
