"""Recipes from YAML files and ``a.b=c`` overrides, and back to text."""

import inspect
import json
import os
import re
import stat
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError, create_model

from sslgh.recipe.base import ConfigModel
from sslgh.recipe.errors import RecipeError, explain, shown
from sslgh.recipe.schema import Recipe

PACKAGE = Path(__file__).resolve().parents[1]
Block = TypeVar("Block", bound=ConfigModel)
# PyYAML reads about 100 kB a second; the longest recipe so far has 2 kB, one with a prior of 8,142 classes 80 kB.
MOST_BYTES = 256 * 1024
TOO_LONG = f"longer than the {MOST_BYTES // 1024} kB that a recipe may have"
MOST_LEVELS = 20
SCALARS = {
    "null": (r"(?:~|null|Null|NULL|)$", "~nN"),
    "bool": (r"(?i:yes|no|true|false|on|off)$", "yYnNtTfFoO"),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,29})$", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.(?i:inf|nan)|(?:(?:0|[1-9][0-9]*)(?=[.eE])\.?|\.(?=[0-9]))[0-9]*(?:[eE][-+]?[0-9]+)?)$",
        "-+.0123456789",
    ),
}


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
    settings = parse(read_text(path), path)
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, got {type(settings).__name__}")
    return settings


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and overrides; only an override has an equals sign and is no file."""
    overrides = [word for word in words if "=" in word and not os.path.exists(word)]  # noqa: PTH110 - never raises
    return [word for word in words if word not in overrides], overrides


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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with scalars that mean one thing only.

    YAML 1.1 reads 1:30 as ninety, 010 as eight, 2024-01-01 as a date and 1e-3 as text. Here a number is
    what looks like one, and the others are text, which a setting that wants a number refuses. Aliases,
    which could let a line stand for gigabytes, and tags are refused.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's name and kind
    levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _fault("an alias (*) is not read in a recipe; write the value out", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _fault(f"the tag {shown(event.tag)} is not read in a recipe; leave it out", event)
        if self.levels >= MOST_LEVELS:
            raise _fault(f"nested deeper than {MOST_LEVELS} levels", event)
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(f"keys must be words, got {shown(key)}", key_node)
            if key in found:
                raise _fault(f"the key {shown(key)} is written twice", key_node)
            found[key] = self.construct_object(value_node, deep=deep)
        return found


class _Dumper(yaml.SafeDumper):
    """Also puts text in quotes that the loader would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(_pattern), [*_first, ""]
        )


def _fault(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def parse(text: str, source: Path | str) -> Any:
    """The value of a YAML text, whose ``source`` is a file or an override; a RecipeError names the line."""
    if len(text) > MOST_BYTES:
        raise _error(source, TOO_LONG)
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.reader.ReaderError, yaml.MarkedYAMLError) as error:
        raise _error(source, _problem(text, error)) from None


def _error(source: Path | str, problem: str) -> RecipeError:
    where = source if isinstance(source, Path) else f"override {shown(source)}"
    return RecipeError(f"{where}: {problem}")


def _problem(text: str, error: yaml.reader.ReaderError | yaml.MarkedYAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position)
        problem = f"the control character U+{ord(text[error.position]):04X}; delete it"
    else:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        problem = ", ".join(filter(None, (error.context, error.problem)))
        lines = text.splitlines() or [""]
        line = min(line, len(lines) - 1)
        if "\t" in lines[line].split("#", maxsplit=1)[0]:
            problem = "it holds a tab; write spaces"
    return f"not valid YAML in line {line + 1}: {problem}"


def read_text(path: Path) -> str:
    """The text of a recipe file; RecipeError if it is missing, not UTF-8, or too long to be a recipe."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading from a pipe could block
            raise _error(path, "is not a regular file; give the path of a recipe")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise _error(path, TOO_LONG)
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, _unreadable(error)) from None


def _unreadable(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such recipe; sslgh recipe list names those that exist"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line} cannot be read as text in UTF-8; save the file as UTF-8"


def to_yaml(settings: dict[str, Any]) -> str:
    """Settings as text that `parse`, and any other reader of YAML, takes back."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, width=100)
