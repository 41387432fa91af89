"""What a run has written so far."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sslgh.engine.run_dir import read_status
from sslgh.evaluation.results import Result, read_results
from sslgh.recipe import Recipe
from sslgh.recipe.run_recipe import load_run

Line = dict[str, Any]


class RunRecord(NamedTuple):
    """A run, done or under way.

    Attributes:
        name: Name of its directory.
        recipe: Recipe of the run.
        lines: Lines of metrics.jsonl by kind: "train", "refresh", "health", "alarm", ...
        results: Probes of the run.
        status: What status.json holds; empty if there is none.
    """

    name: str
    recipe: Recipe
    lines: dict[str, list[Line]]
    results: list[Result]
    status: dict[str, Any]

    def series(self, kind: str, key: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one logged number, where it was logged."""
        points = [
            (line["epoch"] + 1, line[key]) for line in self.lines.get(kind, ()) if _known(line, key)
        ]
        return [float(epoch) for epoch, _ in points], [float(value) for _, value in points]


def read_run(directory: Path) -> RunRecord:
    """A run directory; a run that is under way is read as far as it is.

    Raises:
        RecipeError: If it is no run directory.
        ValueError: If a result in it cannot be read.
    """
    recipe = load_run(directory)
    lines: dict[str, list[Line]] = {}
    path = directory / "metrics.jsonl"
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            lines.setdefault(line["kind"], []).append(line)
        except (json.JSONDecodeError, KeyError, TypeError):  # the last line may be half written
            continue
    name = directory.resolve().name
    return RunRecord(name, recipe, lines, read_results(directory), read_status(directory))


def _known(line: Line, key: str) -> bool:
    value = line.get(key)
    return isinstance(value, int | float) and math.isfinite(value)
