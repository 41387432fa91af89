"""One plain-text table of many probes, 100 columns wide."""

from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import NamedTuple

import torch

from sslgh.evaluation.layout import WIDTH, aligned, percent, shortened
from sslgh.evaluation.results import Result, Scores, Spread
from sslgh.functional.groups import GROUPS, Convention, shot_groups
from sslgh.recipe.printable import printable

# Heads of the columns and the metrics that stand in them.
COLUMNS = {
    "many": "many",
    "medium": "medium",
    "few": "few",
    "std": "std",
    "average": "average",
    "error": "balanced_error",
}
LIMITS = {"many": "over 100", "medium": "20 to 100", "few": "under 20"}
LONGEST_NAME = 40
NO_BREAK = "\N{NO-BREAK SPACE}"

Run = tuple[str, Sequence[Result]]
Entry = tuple[str, Result]


class Section(NamedTuple):
    """Results of runs whose numbers compare, and the groups they are shown by."""

    entries: list[Entry]
    convention: Convention
    note: str = ""


def comparison_table(runs: Sequence[Run], *, convention: Convention = "thresholds") -> str:
    """Runs side by side: a section for each protocol, a line for each objective and run.

    ``average`` is the mean over classes and ``error`` the balanced error. Percent, mean over seeds, with the
    standard deviation (ddof 1) after ± where there are several. A protocol of another version, of other class counts
    or another test prior gets a section of its own: their numbers do not compare. Where the thresholds leave a group
    empty the section is by thirds, and says so. Settings that were chosen on training images stand below.

    Args:
        runs: Names of runs with their results.
        convention: Of the groups.

    Returns:
        Lines of at most 100 characters, without a line break at the end.
    """
    return "\n\n".join("\n".join(_table(section)) for section in sections(runs, convention))


def sections(runs: Sequence[Run], convention: Convention) -> list[Section]:
    """Results whose numbers compare, together."""
    found: dict[tuple[object, ...], list[Entry]] = {}
    for name, results in runs:
        for result in results:
            expected = repr(result.settings.get("test_prior"))
            key = result.protocol, result.version, expected, *result.group_counts
            found.setdefault(key, []).append((printable(name), result))
    return [_section(entries, convention) for entries in found.values()]


def _section(entries: list[Entry], convention: Convention) -> Section:
    sizes = _group_sizes(entries[0][1], convention)
    if convention == "thirds" or 0 not in sizes.values():
        return Section(entries, convention)
    empty = " and ".join(name for name in GROUPS if not sizes[name])
    return Section(entries, "thirds", f"; thresholds leave {empty} empty")


def described(section: Section) -> Iterator[str]:
    """What a section is: protocol, test prior, groups, unit."""
    result = section.entries[0][1]
    sizes = _group_sizes(result, section.convention)
    yield from wrap(f"{result.protocol} v{result.version}: {result.summary}", WIDTH)
    expected = result.settings.get("test_prior", "objective")
    if expected != "objective":
        yield f"predictions for {_expected(expected)}"
    yield f"groups by {_groups(section.convention, result)}"
    yield f"classes: {', '.join(f'{sizes[name]} {name}' for name in GROUPS)}{section.note}"
    yield f"percent{_seeds(section.entries)}; std: of the three groups, ddof {result.std_ddof}"


def _expected(prior: object) -> str:
    names = {"balanced": "equal class shares", "train": "the class shares of training"}
    return names.get(str(prior), "given class shares")


def _groups(convention: Convention, result: Result) -> str:
    # Of the classes there are: labels may leave gaps.
    known = zip(result.group_counts, result.test_counts, strict=True)
    counts = [count for count, test in known if count or test]
    where = f"pretraining images, {max(counts)} to {min(counts)} a class"
    if convention == "thirds":
        return f"thirds of the classes in order of {where}"
    limits = ", ".join(f"{name} {LIMITS[name]}" for name in GROUPS)
    return f"{where}: {limits}"


def _group_sizes(result: Result, convention: Convention) -> dict[str, int]:
    counts, test_counts = torch.tensor(result.group_counts), torch.tensor(result.test_counts)
    groups = shot_groups(counts, convention=convention, test_counts=test_counts)
    return {name: int(mask.sum()) for name, mask in groups.items()}


def _seeds(entries: list[Entry]) -> str:
    seeds = sorted({result.settings.get("seeds", 1) for _, result in entries})
    if seeds == [1]:
        return ""
    return f", mean±std of {' or '.join(map(str, seeds))} seeds"


def _table(section: Section) -> Iterator[str]:
    yield from described(section)

    def cells(scores: Scores) -> list[str]:
        metrics: dict[str, Spread | None] = scores.metrics[section.convention]
        return [percent(metrics[name]) for name in COLUMNS.values()]

    yield from aligned(["objective", "run", *COLUMNS], list(rows(section.entries, cells)), left=2)
    for run, result in section.entries:
        yield from _chosen(run, result)


def rows(entries: list[Entry], cells: Callable[[Scores], list[str]]) -> Iterator[list[str]]:
    """Objective by objective, so that the runs to compare stand under each other."""
    objectives = dict.fromkeys(name for _, result in entries for name in result.scores)
    for objective in objectives:
        found = [(run, r.scores[objective]) for run, r in entries if objective in r.scores]
        for position, (run, scores) in enumerate(found):
            yield ["" if position else objective, run, *cells(scores)]


def _chosen(run: str, result: Result) -> Iterator[str]:
    """What was chosen on training images, objective by objective; what had one value only is left out."""
    if not result.chosen:
        return
    several = [name for name, given in result.settings.items() if isinstance(given, list)]
    values = [
        ", ".join(f"{key} {v:g}" for key, v in found.items() if key in several and v is not None)
        for found in result.chosen.values()
    ]
    # An objective's settings stay together: textwrap does not break at these spaces.
    kept = [
        f"{name} {value}".replace(" ", NO_BREAK)
        for name, value in zip(result.chosen, values, strict=True)
    ]
    head = f"{shortened(run, LONGEST_NAME)}, chosen by {result.settings['folds']} folds of the training images: "
    lines = wrap(head + "; ".join(kept), WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    for line in lines:
        yield line.replace(NO_BREAK, " ")
