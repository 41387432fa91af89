"""Recipes from YAML files and ``a.b=c`` overrides, and back to text; the bundled recipes."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, create_model

from sslgh.recipe.base import ConfigModel
from sslgh.recipe.errors import RecipeError, explain, shown
from sslgh.recipe.schema import Recipe
from sslgh.recipe.yaml_io import MOST_LEVELS, parse, read, to_yaml

PACKAGE = Path(__file__).resolve().parents[1]
Block = TypeVar("Block", bound=ConfigModel)


def load_recipe(path: Path, overrides: Iterable[str] = (), *, gh: bool = False) -> Recipe:
    """Read a YAML file, with ``gh`` as its GH twin, apply ``key.path=value`` overrides and check it.

    Raises:
        RecipeError: One sentence with the file, the key path and the way out.
    """
    settings = _gh_twin(path) if gh else _read(path)
    return make_recipe(apply_overrides(settings, overrides), source=str(path))


def _gh_twin(path: Path) -> dict[str, Any]:
    """A pretraining recipe plus the GH settings of its folder; name and run directory get ``-gh``."""
    settings = _read(path)
    if settings.get("finetune") is not None:
        raise RecipeError(f"{path}: --gh is for pretraining, and this recipe has finetune:")
    if settings.get("harmonize") is not None:
        raise RecipeError(f"{path}: has harmonize: already; leave --gh out")
    stem = "small-simclr-gh" if path.stem.startswith("small-") else "simclr-gh"
    shared = path.with_name(f"{stem}.yaml")
    gh = (_read(shared).get("harmonize") if shared.is_file() else None) or {}
    names = {key: settings.get(key) for key in ("name", "run_dir")}
    suffixed = {key: f"{name}-gh" for key, name in names.items() if isinstance(name, str)}
    return settings | {"harmonize": gh} | suffixed


def make_recipe(settings: Mapping[str, Any], *, source: str = "") -> Recipe:
    """Check settings that were read or built elsewhere; raises as `load_recipe`."""
    return check_block(Recipe, settings, source=source)


def _read(path: Path) -> dict[str, Any]:
    settings = parse(read(path), path)
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, got {type(settings).__name__}")
    return settings


def apply_overrides(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of a nested mapping with each ``a.b=c`` set.

    Raises:
        RecipeError: If an override is not of that form or goes through a value.

    Examples:
        >>> apply_overrides({"train": {"epochs": 1000}}, ["train.epochs=20", "seed=1"])
        {'train': {'epochs': 20}, 'seed': 1}
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.split(".")
        if not equals or not all(path):
            raise RecipeError(f"override {shown(override)}: expected key.path=value")
        if len(path) > MOST_LEVELS:
            raise RecipeError(
                f"override {shown(override)}: nested deeper than {MOST_LEVELS} levels"
            )
        settings = _set(settings, path, parse(text, override), override)
    return settings


def _set(settings: Any, path: list[str], value: Any, override: str) -> dict[str, Any]:
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise RecipeError(
            f"override {shown(override)}: the key before {shown(path[0])} holds {shown(settings)}, not a block"
        )
    head, *rest = path
    return settings | {head: _set(settings.get(head), rest, value, override) if rest else value}


def check_arguments(
    functions: Sequence[Callable[..., Any]],
    arguments: Mapping[str, Any],
    *,
    given: Iterable[str] = (),
    prefix: str,
) -> dict[str, Any]:
    """Check a block of a recipe, without its name, against the keyword-only arguments that it configures.

    ``given``: keywords that do not come from the block. Raises as `check_block`.
    """
    given = set(given)
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given
    }
    model = create_model("Arguments", __base__=ConfigModel, **fields)
    checked = check_block(model, arguments, prefix=prefix)
    return {name: getattr(checked, name) for name in fields}


def check_block(
    model: type[Block], settings: Mapping[str, Any], *, prefix: str = "", source: str = ""
) -> Block:
    """Check a block of a recipe, whose key path is ``prefix``; raises as `load_recipe`."""
    # As JSON, where strict means: a number is no text, and a truth value no number.
    content = json.dumps(dict(settings), default=str)
    try:
        return model.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise explain(error, model, source, prefix) from None


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return to_yaml(recipe.model_dump(mode="json"))


def recipe_root() -> Path:
    """The folder of recipes: in the working folder, the checkout, or the installed package.

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
    """The file of a recipe given by path, or by the name of a bundled one such as digits-lt/simclr."""
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
