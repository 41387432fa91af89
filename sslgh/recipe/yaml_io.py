"""Recipes as YAML text: PyYAML's safe loader, with scalars that mean one thing only.

YAML 1.1 reads 1:30 as ninety, 010 as eight, 2024-01-01 as a date and 1e-3 as text. Here a number is what
looks like one, and the others are text, which a setting that wants a number refuses. Aliases, which could
let a line stand for gigabytes, and tags are refused.
"""

import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sslgh.recipe.errors import RecipeError, shown

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


class _Loader(yaml.SafeLoader):
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


def read(path: Path) -> str:
    """The text of a recipe file; RecipeError if it is missing, not UTF-8, or too long to be a recipe."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading from a pipe could block
            raise _error(path, "is no file; give the path of a recipe")
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
