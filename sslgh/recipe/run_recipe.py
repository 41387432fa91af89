"""The recipe of a run directory: its paths are absolute, and found again where folders have moved."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sslgh.recipe.loading import apply_overrides, load_recipe, make_recipe, to_yaml
from sslgh.recipe.schema import Recipe

RECIPE = "recipe.yaml"
# What the name of a model in a folder begins with.
LOCAL = "local-dir:"
# The paths in a recipe, apart from run_dir.
PATHS = (
    *(("data", key) for key in ("root", "list", "test_root", "test_list", "subset")),
    ("model", "init"),
    *(("method", key) for key in ("teacher", "teachers", "centroids")),
)


def absolute_path(path: str | Path) -> str:
    """A path that does not depend on the working folder; unlike `Path.resolve` it keeps links."""
    return os.path.normpath(Path(path).absolute())


def run_settings(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe with absolute paths, as its run directory keeps it."""
    settings = recipe.model_dump(mode="json") | {"run_dir": absolute_path(recipe.directory)}
    return absolute_settings(settings)


def absolute_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a resolved recipe with absolute paths."""
    settings = _with_paths(settings, "data", absolute_path)
    settings = _with_paths(settings, "model", absolute_init)
    return _with_paths(settings, "method", absolute_init)


def absolute_init(text: str) -> str:
    """``model.init`` with an absolute path, unless it is a word or a library's name.

    Examples:
        >>> [absolute_init(text) for text in ("pretrained", "timm:resnet10t", "/runs/../runs/mine")]
        ['pretrained', 'timm:resnet10t', '/runs/mine']
        >>> absolute_init("local-dir:/models/../models/mine")
        'local-dir:/models/mine'
    """
    if text.startswith(LOCAL):
        return LOCAL + absolute_path(Path(text.removeprefix(LOCAL)).expanduser())
    is_name = text == "pretrained" or re.match(r"[a-z-]{2,}:", text)
    return text if is_name else absolute_path(Path(text).expanduser())


def run_text(recipe: Recipe) -> str:
    """`run_settings` as YAML."""
    return to_yaml(run_settings(recipe))


def load_run(directory: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a run directory, which may have moved since.

    A path that is no longer there is tried where it was as seen from the run directory: a project that moves as a
    whole keeps its data.

    Raises:
        RecipeError: If the directory holds no recipe, or one that cannot be read.
    """
    path = directory / RECIPE
    recipe = load_recipe(path)
    before, now = recipe.directory, absolute_path(directory)

    def found_again(text: str) -> str:
        if os.path.exists(text) or not (before.is_absolute() and Path(text).is_absolute()):  # noqa: PTH110
            return text
        moved = os.path.normpath(Path(now) / os.path.relpath(text, before))
        return moved if os.path.exists(moved) else text  # noqa: PTH110

    settings = recipe.model_dump(mode="json") | {"run_dir": str(directory)}
    for block in ("data", "model", "method"):
        settings = _with_paths(settings, block, found_again)
    return make_recipe(apply_overrides(settings, overrides), source=str(path))


def _with_paths(
    settings: dict[str, Any], block: str, change: Callable[[str], str]
) -> dict[str, Any]:
    """Settings with the paths of a block changed by a function of their text."""
    if settings.get(block) is None:  # the other stage has it
        return settings
    values = {key: settings[block].get(key) for of, key in PATHS if of == block}
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, str):
            changed[key] = change(value)
        elif isinstance(value, list | tuple):
            changed[key] = [change(text) if isinstance(text, str) else text for text in value]
    return settings | {block: settings[block] | changed}
