"""Results of runs as tables of a page: objectives by group of classes, confusion, calibration, paired differences.

Shapes: C classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sslgh.evaluation.results import Result, Scores, Spread
from sslgh.evaluation.tables import COLUMNS, Section, described, percent, rows, sections
from sslgh.report.run_record import RunRecord

FURTHER = {
    "few taken for many": "few_as_many",
    "many taken for few": "many_as_few",
    "calibration error": "calibration_error",
    "worst class": "worst",
}
LOWER_IS_BETTER = {"std", "balanced_error", "few_as_many", "many_as_few", "calibration_error"}


class PageTable(NamedTuple):
    """A table of a page.

    Attributes:
        heads: Heads of the columns; the first two name objective and run.
        rows: Cells as text.
        best: For each row the numbers of the columns in which it is the best of its section.
    """

    heads: list[str]
    rows: list[list[str]]
    best: list[set[int]]


class ProtocolComparison(NamedTuple):
    """One protocol.

    Attributes:
        words: What was measured, in lines.
        groups: Accuracy by group of classes.
        further: Confusion of head and tail, calibration.
        pairs: Differences of runs from the first, in words.
    """

    words: list[str]
    groups: PageTable
    further: PageTable
    pairs: list[str]


def comparisons(runs: Sequence[RunRecord]) -> list[ProtocolComparison]:
    """The probes of runs, those that are comparable together."""
    found = sections([(run.name, run.results) for run in runs], "thresholds")
    return [
        ProtocolComparison(
            list(described(section)),
            _table(section, COLUMNS),
            _table(section, FURTHER),
            paired(section.entries),
        )
        for section in found
    ]


def _table(section: Section, columns: dict[str, str]) -> PageTable:
    metrics = list(columns.values())

    def cells(scores: Scores) -> list[str]:
        return [percent(scores.metrics[section.convention][metric]) for metric in metrics]

    names = dict.fromkeys(name for _, result in section.entries for name in result.scores)
    scores = [r.scores[name] for name in names for _, r in section.entries if name in r.scores]
    best = [
        _best([each.metrics[section.convention][metric] for each in scores], metric)
        for metric in metrics
    ]
    chosen = [{n for n, rows in enumerate(best, 2) if row in rows} for row in range(len(scores))]
    return PageTable(["objective", "run", *columns], list(rows(section.entries, cells)), chosen)


def _best(values: Sequence[Spread | None], metric: str) -> set[int]:
    """Rows with the best value of a column; none where there is nothing to compare."""
    known = [value.mean for value in values if value is not None]
    if len(set(known)) < 2:
        return set()
    top = min(known) if metric in LOWER_IS_BETTER else max(known)
    return {row for row, value in enumerate(values) if value is not None and value.mean == top}


def paired(entries: Sequence[tuple[str, Result]]) -> list[str]:
    """Differences from the first run, class by class: mean and standard error over classes.

    The classes are the pairs: whatever makes one hard is taken out. Spread over seeds is not in it.
    """
    lines = []
    first_name, first = entries[0]
    for name, result in entries[1:]:
        for objective in first.scores.keys() & result.scores.keys():
            found = _difference(first, result, objective)
            if found is not None:
                mean, error = found
                lines.append(
                    f"{objective}: {name} less {first_name} {100 * mean:+.1f} points over classes, standard error "
                    f"{100 * error:.1f}"
                )
    return sorted(lines)


def _difference(first: Result, second: Result, objective: str) -> tuple[float, float] | None:
    """Mean over classes of the difference in accuracy, and its standard error; None for less than two classes."""
    pairs = zip(
        first.scores[objective].class_accuracy, second.scores[objective].class_accuracy, strict=True
    )
    values = np.array([b - a for a, b in pairs if a is not None and b is not None])
    if len(values) < 2:
        return None
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
