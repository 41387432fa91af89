"""One plain-text table of many probes, 100 columns wide."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from sslgh.evaluation.results import Result, Spread
from sslgh.functional.groups import GROUPS, Convention, shot_groups

COLUMNS = {
    "many": "many",
    "medium": "medium",
    "few": "few",
    "std": "std",
    "average": "average",
    "balanced_error": "error",
}
WIDTH = 100
LIMITS = {"many": "over 100", "medium": "20 to 100", "few": "under 20"}

Run = tuple[str, Sequence[Result]]
Row = tuple[str, str, list[str]]


def comparison_table(runs: Sequence[Run], *, convention: Convention = "thresholds") -> str:
    """Runs side by side: a section for each protocol, a line for each objective and run.

    ``average`` is the mean over classes and ``error`` the balanced error. Percent, mean over seeds, with the standard deviation (ddof 1) after ± where there are several. A protocol
    of another version, or of other class counts, gets a section of its own: their numbers do not compare. Where
    the thresholds leave a group empty the section is by thirds, and says so.

    Args:
        runs: Names of runs with their results.
        convention: Of the groups.

    Returns:
        Lines of at most 100 characters, without a line break at the end.
    """
    sections: dict[tuple[object, ...], list[tuple[str, Result]]] = {}
    for name, results in runs:
        for result in results:
            key = result.protocol, result.version, *result.group_counts
            sections.setdefault(key, []).append((name, result))
    parts = [_section(entries, convention) for entries in sections.values()]
    return "\n\n".join("\n".join(part) for part in parts)


def _section(entries: list[tuple[str, Result]], convention: Convention) -> Iterator[str]:
    result = entries[0][1]
    sizes = _group_sizes(result, convention)
    note = ""
    if convention == "thresholds" and 0 in sizes.values():
        empty = " and ".join(name for name in GROUPS if not sizes[name])
        note = f"; thresholds leave {empty} empty"
        convention = "thirds"
        sizes = _group_sizes(result, convention)
    yield f"{result.protocol} v{result.version}: {result.summary}"
    yield f"groups by {_describe(convention, result)}"
    yield f"classes: {', '.join(f'{sizes[name]} {name}' for name in GROUPS)}{note}"
    yield f"percent{_seeds(entries)}; std: of the three groups, ddof {result.std_ddof}"
    yield from _lines(list(_rows(entries, convention)))


def _describe(convention: Convention, result: Result) -> str:
    counts = result.group_counts
    where = f"pretraining images, {max(counts)} to {min(counts)} a class"
    if convention == "thirds":
        return f"thirds of the classes in order of {where}"
    limits = ", ".join(f"{name} {LIMITS[name]}" for name in GROUPS)
    return f"{where}: {limits}"


def _group_sizes(result: Result, convention: Convention) -> dict[str, int]:
    groups = shot_groups(torch.tensor(result.group_counts), convention=convention)
    return {name: int(mask.sum()) for name, mask in groups.items()}


def _seeds(entries: list[tuple[str, Result]]) -> str:
    seeds = sorted({result.settings.get("seeds", 1) for _, result in entries})
    if seeds == [1]:
        return ""
    return f", mean±std of {' or '.join(map(str, seeds))} seeds"


def _rows(entries: list[tuple[str, Result]], convention: Convention) -> Iterator[Row]:
    """Objective by objective, so that the runs to compare stand under each other."""
    objectives = dict.fromkeys(name for _, result in entries for name in result.scores)
    for objective in objectives:
        for run, result in entries:
            if objective in result.scores:
                metrics = result.scores[objective].metrics[convention]
                yield objective, run, [_percent(metrics[column]) for column in COLUMNS]


def _percent(value: Spread | None) -> str:
    if value is None:
        return "-"
    spread = "" if value.std is None else f"±{100 * value.std:.1f}"
    return f"{100 * value.mean:.1f}{spread}"


def _lines(rows: list[Row]) -> Iterator[str]:
    heads = list(COLUMNS.values())
    cells = [heads, *(numbers for _, _, numbers in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    objective_width = max(len("objective"), *(len(objective) for objective, _, _ in rows))
    room = WIDTH - objective_width - sum(2 + width for width in widths) - 2
    run_width = min(room, max(len("run"), *(len(run) for _, run, _ in rows)))
    yield _line("objective", "run", heads, [objective_width, run_width, *widths])
    before = None
    for objective, run, numbers in rows:
        shown = "" if objective == before else objective
        yield _line(shown, _shorten(run, run_width), numbers, [objective_width, run_width, *widths])
        before = objective


def _line(objective: str, run: str, numbers: Iterable[str], widths: list[int]) -> str:
    first, second, *rest = widths
    cells = [f"{number:>{width}}" for number, width in zip(numbers, rest, strict=True)]
    return "  ".join([f"{objective:<{first}}", f"{run:<{second}}", *cells]).rstrip()


def _shorten(text: str, width: int) -> str:
    """Cut in the middle: names of runs differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
