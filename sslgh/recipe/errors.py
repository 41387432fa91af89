"""Errors of a recipe as one sentence: file, key path, what was expected, the nearest known key."""

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


class RecipeError(ValueError):
    """A recipe or override that cannot be used."""


def explain(
    error: ValidationError, model: type[BaseModel], source: str, prefix: str = ""
) -> RecipeError:
    """The first of the validation errors as a sentence.

    Args:
        error: What pydantic found.
        model: The model that was validated, to know the keys at each place.
        source: The file the recipe came from.
        prefix: Key path of the model inside the recipe.
    """
    problems = error.errors(include_url=False)
    # An unknown key often causes a missing one: name the cause.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = [part for part in first["loc"] if not _is_union_tag(part, model)]
    message = _message(first, path, model)
    if first["type"] in ("extra_forbidden", "missing"):
        path = path[:-1]
    where = ".".join(str(part) for part in (*filter(None, [prefix]), *path))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return RecipeError(": ".join(part for part in (source, where, message) if part) + more)


def _message(problem: Any, path: list[Any], model: type[BaseModel]) -> str:
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return unknown_key(str(path[-1]), _keys_at(model, path[:-1]))
    if kind == "missing":
        return f"the key {path[-1]!r} is missing"
    text: str = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return text
    return f"{text[0].lower()}{text[1:]}, got {given!r}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and the nearest one that is not."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"


def _keys_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside an annotation such as ``tuple[Probe, ...]`` or ``Harmonize | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(part) for part in typing.get_args(annotation))), None)


def _is_union_tag(part: Any, model: type[BaseModel]) -> bool:
    """Pydantic puts the tried member of a union into the path; a user did not write it."""
    return isinstance(part, str) and (part == "Shuffled" or "[" in part)
