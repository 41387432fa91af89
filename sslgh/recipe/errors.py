"""Errors of a recipe as one sentence: file, key path, what was expected, the nearest known key."""

import difflib
import math
import os
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

LONGEST_SHOWN = 60
# What pydantic's kinds of errors expected, in words; in braces what it knows of the place.
WHOLE, NUMBER, BLOCK = "a whole number", "a number", "a block of keys"
TRUTH = "true or false"
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), WHOLE),
    "int_parsing_size": "a whole number of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), NUMBER),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), TRUTH),
    "string_type": "text",
    "string_pattern_mismatch": "text of the pattern {pattern}",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), BLOCK),
    "path_type": "a path",
}


def printable(text: str | os.PathLike[str]) -> str:
    r"""The text in one line, with what a terminal would act on written as an escape.

    A name of a file or a class can hold line breaks, terminal codes, turned writing direction or
    bytes that are no text: printed as they are they forge lines, or cannot be encoded.

    Examples:
        >>> printable("Grüße, 猫")
        'Grüße, 猫'
        >>> print(printable("cat\n\x1b[31mdog\udcff"))
        cat\n\x1b[31mdog\udcff
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii")
        for one in os.fspath(text)
    )


def located(path: str | os.PathLike[str]) -> str:
    """A path for a message; a relative one with the folder that it was taken from."""
    if os.path.isabs(path):  # noqa: PTH117
        return printable(path)
    try:
        return printable(f"{os.fspath(path)} (in {os.getcwd()})")  # noqa: PTH109 - a gone folder
    except OSError:
        return printable(f"{os.fspath(path)} (in a working folder that is gone)")


class RecipeError(ValueError):
    """A recipe or override that cannot be used; its sentence is one line and safe to print."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class Fault(typing.NamedTuple):
    """One thing that is wrong.

    Attributes:
        where: Key path of what the sentence is about.
        message: Expected and found values.
    """

    where: tuple[Any, ...]
    message: str


def explain(
    error: ValidationError, model: type[BaseModel], source: str, prefix: str = ""
) -> RecipeError:
    """The first of the validation errors as a sentence, and where the next one is.

    Args:
        error: The error of pydantic.
        model: The model that was validated, to know the keys at each place.
        source: The file the recipe came from.
        prefix: Key path of the model inside the recipe.
    """
    first, *others = _faults(error, model)
    parts = (source, _dotted(prefix, first.where), first.message)
    return RecipeError(": ".join(part for part in parts if part) + _more(prefix, others))


def _more(prefix: str, others: Sequence[Fault]) -> str:
    if not others:
        return ""
    faults = "1 more fault" if len(others) == 1 else f"{len(others)} more faults, the next"
    return f"; {faults} at {_dotted(prefix, others[0].where) or 'the top'}"


def _dotted(prefix: str, where: Sequence[Any]) -> str:
    return ".".join(str(part)[:LONGEST_SHOWN] for part in (*filter(None, [prefix]), *where))


def _faults(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """One for each place; an unknown key often causes a missing one, so the cause comes first."""
    problems = error.errors(include_url=False)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    at: dict[tuple[Any, ...], list[Any]] = {}
    for problem in problems:
        at.setdefault(_place(problem), []).append(problem)
    # Of a union the member that looked deepest is the one that was meant.
    deepest = [p for p in at if not any(p == other[: len(p)] for other in at if other != p)]
    return [_fault(place, at[place], model) for place in deepest or at]


def _place(problem: Any) -> tuple[Any, ...]:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":  # its last part is the user's, whatever it looks like
        return (*_place({"type": "", "loc": location[:-1]}), location[-1])
    return tuple(part for part in location if not _is_union_tag(part))


def _fault(place: tuple[Any, ...], problems: Sequence[Any], model: type[BaseModel]) -> Fault:
    problem = problems[0]
    if problem["type"] == "extra_forbidden":
        return Fault(place[:-1], unknown_key(str(place[-1]), _keys_at(model, place[:-1])))
    if problem["type"] == "missing":
        kind = "entry" if isinstance(place[-1], int) else "key"
        return Fault(place[:-1], f"the {kind} {place[-1]!r} is missing")
    if problem["type"] == "value_error":
        return Fault(place, str(problem["msg"]).removeprefix("Value error, "))
    expected = " or ".join(dict.fromkeys(map(_expected, problems)))
    given = problem["input"]
    return Fault(place, f"expected {expected}, got {shown(given)}{_remedy(expected, given)}")


def _remedy(expected: str, given: Any) -> str:
    """The way out where a value has the wrong type only."""
    if expected == "text" and isinstance(given, int | float):
        return "; put it in quotes"
    if expected == TRUTH and given in (0, 1):
        return f"; write {'true' if given else 'false'}"
    if expected not in (WHOLE, NUMBER) or not isinstance(given, str | float):
        return ""
    try:
        number = float(given)
    except ValueError:
        return ""
    if not math.isfinite(number) or (expected == WHOLE and not number.is_integer()):
        return ""
    return f"; write {int(number) if number.is_integer() else number}"


def _expected(problem: Any) -> str:
    known = EXPECTED.get(problem["type"])
    return str(problem["msg"]) if known is None else known.format(**problem.get("ctx", {}))


def shown(value: Any) -> str:
    """A value as one writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a huge number"
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"


def some_of(values: Sequence[object], most: int = 3) -> str:
    """The first of the values, and how many more there are: no message grows with the data.

    Examples:
        >>> some_of([3, 17]), some_of(range(1000))
        ('3, 17', '0, 1, 2 and 997 more')
    """
    first = values if len(values) <= most + 1 else values[:most]
    text = ", ".join(printable(str(value)) for value in first)
    return text if len(first) == len(values) else f"{text} and {len(values) - most:,} more"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and the nearest one that is not."""
    known = sorted(known)
    # The comparison is quadratic in the length: a key of megabytes would take hours.
    near = difflib.get_close_matches(key[:LONGEST_SHOWN], known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {shown(key)}; {hint}"


def _keys_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
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


def _is_union_tag(part: Any) -> bool:
    """Pydantic puts the tried member of a union into the path; a user did not write it."""
    return isinstance(part, str) and (part == "Shuffled" or "[" in part)
