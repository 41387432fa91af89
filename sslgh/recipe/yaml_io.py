"""How recipes are written: the part of YAML that means one thing only, read within bounds.

YAML 1.1 has the number 1e-3 as text, 1:30 as ninety, 010 as eight and a date as an object. Here a
number is what a number looks like, and the others are text, which a setting that wants a number
refuses. Aliases, merge keys and tags are not read: a recipe has nothing to repeat, and aliases let a
line stand for gigabytes.
"""

import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from sslgh.recipe.errors import RecipeError, shown

# PyYAML reads about 100 kB a second; the longest recipe so far has 2 kB, one with a prior of 8,142 classes 80 kB.
MOST_BYTES = 256 * 1024
MOST_LEVELS = 20
MOST_DIGITS = 30

NULL, BOOL, INT, FLOAT, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge")
)
ZERO_LED = "zero-led"
STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """Refuses what could be read in two ways, or grow."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's name and kind
    levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _fault("an alias (*) is not read in a recipe; write the value out", event)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise _fault(f"the tag {shown(tag)} is not read in a recipe; leave it out", event)
        if self.levels >= MOST_LEVELS:
            raise _fault(f"nested deeper than {MOST_LEVELS} levels", event)
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def _fault(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _fault(f"keys must be words, got {shown(key)}", key_node)
        if key in found:
            raise _fault(f"the key {shown(key)} is written twice", key_node)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(item, deep=True) for item in node.value]


def _whole(_: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    if len(text) > MOST_DIGITS:
        raise _fault(f"a number of {len(text)} digits; expected at most {MOST_DIGITS}", node)
    return int(text)


def _zero_led(_: _Loader, node: yaml.ScalarNode) -> None:
    # Ten to YAML 1.2 and eight to YAML 1.1.
    raise _fault(f"the number {node.value[:MOST_DIGITS]} begins with 0; leave the 0 out", node)


def _merge(_: _Loader, node: yaml.ScalarNode) -> None:
    raise _fault("a merge key (<<) is not read in a recipe; write the keys out", node)


def _number(_: _Loader, node: yaml.ScalarNode) -> float:
    text = node.value.lower()
    named = text[-3:] in ("inf", "nan")
    number = float(text.replace(".", "") if named else text)
    if math.isinf(number) and not named:
        raise _fault(f"the number {shown(node.value)} is too large", node)
    return number


for _tag, _pattern, _first in (
    (NULL, r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (BOOL, r"(?:yes|no|true|false|on|off)$", list("yYnNtTfFoO")),
    (ZERO_LED, r"[-+]?0[0-9]+$", STARTS),
    (INT, r"[-+]?[0-9]+$", STARTS),
    (FLOAT, r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?$|[-+]?\.(?:inf|nan)$", STARTS),
    (MERGE, r"<<$", ["<"]),
):
    _flags = 0 if _tag == NULL else re.IGNORECASE
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern, _flags), _first)
for _tag, _constructor in (
    (INT, _whole),
    (ZERO_LED, _zero_led),
    (MERGE, _merge),
    (FLOAT, _number),
    (yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping),
    (yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG, _sequence),
):
    _Loader.add_constructor(_tag, _constructor)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that the loader, or YAML 1.1, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _character, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _regexp, [_character])


def parse(text: str, source: str) -> Any:
    """The value of a YAML text.

    Args:
        text: Text of a file, or the value of an override.
        source: Origin of the text, for the error.

    Raises:
        RecipeError: One sentence with the line.
    """
    if len(text) > MOST_BYTES:
        raise RecipeError(
            f"{source}: longer than the {MOST_BYTES // 1024} kB that a recipe may have"
        )
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise RecipeError(
            f"{source}: not valid YAML in line {line}: the control character {code}; delete it"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{source}: not valid YAML{_line(error, text)}") from None


def _line(error: yaml.MarkedYAMLError, text: str) -> str:
    """Line and reason; PyYAML's words for a tab and for a second document do not say what to do."""
    problem = error.problem or error.context
    if error.problem_mark is None:
        return f": {problem}"
    lines = text.splitlines()
    number = min(error.problem_mark.line, max(len(lines) - 1, 0))
    if lines and "\t" in lines[number].split("#")[0]:
        problem = "it holds a tab; write spaces"
    elif problem == "but found another document":
        problem = "a second document begins; a recipe is one"
    return f" in line {number + 1}: {problem}"


def read(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: If there is none, or it is no text, or too long to be a recipe.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could keep us waiting
            raise RecipeError(f"{path}: is no file; give the path of a recipe")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such recipe; sslgh recipe list names those that exist"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise RecipeError(f"{path}: longer than the {MOST_BYTES // 1024} kB that a recipe may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}: line {line} cannot be read as text in UTF-8; save the file as UTF-8"
        ) from None


def to_yaml(settings: dict[str, Any]) -> str:
    """Settings as text that `parse`, and any other reader of YAML, takes back."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, width=100)
