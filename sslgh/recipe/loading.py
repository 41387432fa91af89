"""Recipes from YAML files and ``a.b=c`` overrides, and back to text."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, ValidationError, create_model

from sslgh.recipe.errors import RecipeError, explain
from sslgh.recipe.schema import Recipe


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice: YAML would silently keep the last."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"keys must be words, got {key!r}", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is written twice", key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: A YAML file.
        overrides: ``key.path=value`` with the value as YAML, e.g. ``train.epochs=20``.

    Raises:
        RecipeError: One sentence with the file, the key path and the way out.
    """
    return make_recipe(apply_overrides(_read(path), overrides), source=str(path))


def make_recipe(settings: Mapping[str, Any], *, source: str = "") -> Recipe:
    """Check settings that were read or built elsewhere.

    Raises:
        RecipeError: As :func:`load_recipe`.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise explain(error, Recipe, source) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such recipe; sslgh recipe list names those that exist"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from None
    settings = _parse(text, str(path))
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, got {type(settings).__name__}")
    return settings


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{source}: not valid YAML{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from None


def apply_overrides(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set ``a.b=c`` in a nested mapping.

    Args:
        settings: Not changed.
        overrides: Each ``key.path=value``.

    Returns:
        A changed copy.

    Raises:
        RecipeError: If an override is not of that form or goes through a value.

    Examples:
        >>> apply_overrides({"train": {"epochs": 1000}}, ["train.epochs=20", "seed=1"])
        {'train': {'epochs': 20}, 'seed': 1}
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"override {override!r}: expected key.path=value")
        settings = _set(settings, key.split("."), _parse(text, f"override {override!r}"), override)
    return settings


def _set(settings: Any, path: list[str], value: Any, override: str) -> dict[str, Any]:
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise RecipeError(
            f"override {override!r}: the key before {path[0]!r} holds {settings!r}, not a block"
        )
    head, *rest = path
    return settings | {head: _set(settings.get(head), rest, value, override) if rest else value}


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], *, given: Iterable[str], prefix: str
) -> dict[str, Any]:
    """Check a block of a recipe against the typed keyword arguments of the class it configures.

    Args:
        function: The class.
        arguments: The block, without its name.
        given: Keywords that do not come from the block.
        prefix: Key path of the block.

    Returns:
        The arguments, converted to their types.

    Raises:
        RecipeError: With the same messages as the rest of the recipe.
    """
    given = set(given)
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given
    }
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked = model.model_validate(dict(arguments))
    except ValidationError as error:
        raise explain(error, model, "", prefix) from None
    return {name: getattr(checked, name) for name in fields}


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)
