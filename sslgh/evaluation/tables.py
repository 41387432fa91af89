"""Plain-text tables of many probes, at most 100 columns wide."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from textwrap import wrap
from typing import NamedTuple

import torch

from sslgh.evaluation.results import Metrics, Result, Scores, Spread
from sslgh.functional.groups import GROUPS, Convention, shot_groups
from sslgh.recipe.errors import printable

WIDTH = 100
# Column heads and their metrics.
COLUMNS = {
    "many": "many",
    "medium": "medium",
    "few": "few",
    "std": "std",
    "average": "average",
    "error": "balanced_error",
}
LIMITS = {"many": "over 100", "medium": "20 to 100", "few": "under 20"}
PRIORS = {"balanced": "equal class shares", "train": "the class shares of training"}
LONGEST_NAME = 40
# Columns of `details_table`. Two blocks, since eight numbers with their spread do not fit into a line.
BLOCKS = (
    {
        "macro F1": "macro_f1",
        "harmonic": "harmonic",
        "worst class": "worst",
        "ECE": "calibration_error",
    },
    {
        "few->many": "few_as_many",
        "many->few": "many_as_few",
        "norm many": "norm_many",
        "norm few": "norm_few",
    },
)
LEGEND = (
    "harmonic: harmonic mean over classes; ECE: calibration error of the scores' softmax, 15 bins",
    "few->many: few-shot test images taken for a many-shot class; norm: mean length of class weights",
)
TIGHTNESS = "tightness: mean squared distance within a class on the unit sphere, smaller is tighter"
LONGEST_CLASS = 30
NO_BREAK = "\N{NO-BREAK SPACE}"

Run = tuple[str, Sequence[Result]]
Entry = tuple[str, Result]


class Section(NamedTuple):
    """Results of runs whose numbers are comparable, and the convention of their groups.

    Attributes:
        note: What is noted after the groups.
        test_set: The test set, where a table has several of a protocol.
    """

    entries: list[Entry]
    convention: Convention
    note: str = ""
    test_set: str = ""


def comparison_table(runs: Sequence[Run], *, convention: Convention = "thresholds") -> str:
    """Runs side by side: one section per protocol, one line per objective and run.

    ``average`` is the mean over classes and ``error`` the balanced error. Percent, mean over seeds, with the
    standard deviation (ddof 1) after ± where there are several. A protocol of another version, of other class counts,
    another test prior or another test set, and an out-of-fold estimate, gets a section of its own: their numbers are
    not comparable. If the thresholds leave a group
    empty the section is by thirds, and its head names them. Settings chosen on training images are listed below.

    Args:
        runs: Names of runs with their results.
        convention: Convention of the groups.

    Returns:
        Lines of at most 100 characters, without a line break at the end.
    """
    return "\n\n".join("\n".join(_table(section)) for section in sections(runs, convention))


def sections(runs: Sequence[Run], convention: Convention) -> list[Section]:
    """Results in sections of comparable numbers."""
    found: dict[tuple[object, ...], list[Entry]] = {}
    for name, results in runs:
        for result in results:
            expected = repr(result.settings.get("test_prior"))
            tested = None if result.data is None else result.data.fingerprint
            folds = result.settings.get("out_of_fold")
            key = result.protocol, result.version, expected, tested, folds, *result.group_counts
            layers = ", last two layers" if result.settings.get("features") == "last-two" else ""
            found.setdefault(key, []).append((printable(name) + layers, result))
    return [_section(entries, convention, _test_set(key, found)) for key, entries in found.items()]


def _test_set(key: tuple[object, ...], found: dict[tuple[object, ...], list[Entry]]) -> str:
    """The test set of a section in words; empty if all of its protocol and version have the same."""
    if len({other[3] for other in found if other[:2] == key[:2]}) == 1:
        return ""
    data = found[key][0][1].data
    return "not recorded" if data is None else printable(data.test_set)


def _section(entries: list[Entry], convention: Convention, test_set: str) -> Section:
    sizes = _group_sizes(entries[0][1], convention)
    if convention == "thirds" or 0 not in sizes.values():
        return Section(entries, convention, test_set=test_set)
    empty = " and ".join(name for name in GROUPS if not sizes[name])
    return Section(entries, "thirds", f"; thresholds leave {empty} empty", test_set)


def described(section: Section) -> Iterator[str]:
    """Heading of a section: protocol, test prior, groups, unit."""
    result = section.entries[0][1]
    sizes = _group_sizes(result, section.convention)
    yield from wrap(
        f"{result.protocol} v{result.version}: {result.summary}", WIDTH, break_on_hyphens=False
    )
    if section.test_set:
        yield from wrap(f"test set: {section.test_set}", WIDTH, subsequent_indent="  ")
    expected = result.settings.get("test_prior", "objective")
    if expected != "objective":
        yield f"predictions for {PRIORS.get(str(expected), 'given class shares')}"
    yield f"groups by {_groups(section.convention, result)}"
    yield f"classes: {', '.join(f'{sizes[name]} {name}' for name in GROUPS)}{section.note}"
    seeds = sorted({result.settings.get("seeds", 1) for _, result in section.entries})
    spread = "" if seeds == [1] else f", mean±std of {' or '.join(map(str, seeds))} seeds"
    yield f"percent{spread}; std over the three groups, ddof {result.std_ddof}"


def _groups(convention: Convention, result: Result) -> str:
    # Of existing classes only: labels may have gaps.
    known = zip(result.group_counts, result.test_counts, strict=True)
    counts = [count for count, test in known if count or test]
    where = f"pretraining images, {max(counts)} to {min(counts)} per class"
    if convention == "thirds":
        return f"thirds of the classes in order of {where}"
    limits = ", ".join(f"{name} {LIMITS[name]}" for name in GROUPS)
    return f"{where}: {limits}"


def _group_sizes(result: Result, convention: Convention) -> dict[str, int]:
    counts, test_counts = torch.tensor(result.group_counts), torch.tensor(result.test_counts)
    groups = shot_groups(counts, convention=convention, test_counts=test_counts)
    return {name: int(mask.sum()) for name, mask in groups.items()}


def _table(section: Section) -> Iterator[str]:
    yield from described(section)

    def cells(scores: Scores) -> list[str]:
        metrics = scores.metrics[section.convention]
        return [percent(metrics[name]) for name in COLUMNS.values()]

    yield from aligned(["objective", "run", *COLUMNS], list(rows(section.entries, cells)), left=2)
    for run, result in section.entries:
        if result.chosen:
            yield from _chosen(run, result)


def rows(entries: list[Entry], cells: Callable[[Scores], list[str]]) -> Iterator[list[str]]:
    """Lines by objective, so that the runs to compare are adjacent."""
    objectives = dict.fromkeys(name for _, result in entries for name in result.scores)
    for objective in objectives:
        found = [(run, r.scores[objective]) for run, r in entries if objective in r.scores]
        for position, (run, scores) in enumerate(found):
            yield ["" if position else objective, run, *cells(scores)]


def _chosen(run: str, result: Result) -> Iterator[str]:
    """Settings chosen on training images, by objective, without settings of a single value."""
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


def details_table(runs: Sequence[Run], *, convention: Convention = "thresholds") -> str:
    """Further metrics of runs, in the sections and lines of `comparison_table`.

    Mean over classes of F1; harmonic mean and worst of the class accuracies; calibration; confusion of
    few-shot with many-shot classes; lengths of class weights; tightness of the features, and of
    the embeddings of objectives that have some.

    Args:
        runs: Names of runs with their results.
        convention: Convention of the groups.

    Returns:
        Lines of at most 100 characters, without a line break at the end.
    """
    return "\n\n".join(_details(section) for section in sections(runs, convention))


def _details(section: Section) -> str:
    blocks = [[*described(section), *LEGEND]]
    for columns in BLOCKS:
        lines = list(rows(section.entries, partial(_cells, columns, section.convention)))
        blocks.append(list(aligned(["objective", "run", *columns], lines, left=2)))
    if tight := list(_tightness(section)):
        heads = [f"{split} {group}" for split in ("train", "test") for group in ("many", "few")]
        blocks.append([TIGHTNESS, *aligned(["of", "run", *heads], tight, left=2)])
    return "\n\n".join("\n".join(block) for block in blocks)


def _cells(columns: dict[str, str], convention: Convention, scores: Scores) -> list[str]:
    metrics = scores.metrics[convention]
    return [
        (plain if name.startswith("norm") else percent)(metrics[name]) for name in columns.values()
    ]


def _tightness(section: Section) -> Iterator[list[str]]:
    """Lines of the features of every run, then of the embeddings of objectives."""
    features = [(run, result.tightness) for run, result in section.entries if result.tightness]
    yield from _tight_rows("features", features, section.convention)
    for name in dict.fromkeys(name for _, result in section.entries for name in result.scores):
        own = [(run, tight) for run, r in section.entries if (tight := _own(r, name))]
        yield from _tight_rows(name, own, section.convention)


def _own(result: Result, name: str) -> dict[str, dict[str, Metrics]] | None:
    return result.scores[name].tightness if name in result.scores else None


def _tight_rows(
    name: str,
    found: Sequence[tuple[str, dict[str, dict[str, Metrics]]]],
    convention: Convention,
) -> Iterator[list[str]]:
    for position, (run, tightness) in enumerate(found):
        values = [
            tightness[split][convention][group]
            for split in ("train", "test")
            for group in ("many", "few")
        ]
        numbers = ["-" if value is None else f"{value:.3f}" for value in values]
        yield ["" if position else name, run, *numbers]


def class_table(result: Result) -> str:
    """Accuracy of every class by objective, in blocks of as many objectives as fit.

    Args:
        result: Result of one run.

    Returns:
        One line per class with its name, training images and accuracies in percent, mean over seeds; at most 100
        characters, without a line break at the end.
    """
    seeds = result.settings.get("seeds", 1)
    mean = "" if seeds == 1 else f", mean of {seeds} seeds"
    head = next(described(Section([("", result)], "thirds")))
    names = [shortened(printable(name), LONGEST_CLASS) for name in result.class_names]
    counts = [str(count) for count in result.train_counts]
    left = max(map(len, ("class", *names))) + 2 + max(map(len, ("images", *counts)))
    blocks = [
        "\n".join(_classes(result, objectives, names, counts))
        for objectives in _fitting(list(result.scores), WIDTH - left)
    ]
    return "\n\n".join([f"{head}\naccuracy of each class in percent{mean}", *blocks])


def _classes(
    result: Result, objectives: Sequence[str], names: Sequence[str], counts: Sequence[str]
) -> Iterator[str]:
    columns = [
        ["-" if a is None else f"{100 * a:.1f}" for a in result.scores[name].class_accuracy]
        for name in objectives
    ]
    lines = [list(row) for row in zip(names, counts, *columns, strict=True)]
    yield from aligned(["class", "images", *objectives], lines, left=1)


def _fitting(names: Sequence[str], room: int) -> Iterator[list[str]]:
    """Names in lists whose columns, two characters apart, fit into a line."""
    block: list[str] = []
    for name in names:
        if sum(2 + max(len("100.0"), len(n)) for n in (*block, name)) > room and block:
            yield block
            block = []
        block.append(name)
    if block:
        yield block


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """Lines of a table: its heads, then its rows.

    The first ``left`` columns are words, aligned to the left, and the last of these is shortened in the
    middle if a line would be longer than `WIDTH`; the others are numbers.

    Examples:
        >>> for line in aligned(["run", "error"], [["a", "50.0"], ["bb", "7.5"]], left=1):
        ...     print(line)
        run  error
        a     50.0
        bb     7.5
    """
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = WIDTH - sum(widths) - 2 * (len(widths) - 1) + widths[left - 1]
    widths[left - 1] = min(room, widths[left - 1])
    for row in (heads, *rows):
        cells = list(zip(row, widths, strict=True))
        words = [f"{shortened(word, width):<{width}}" for word, width in cells[:left]]
        numbers = [f"{number:>{width}}" for number, width in cells[left:]]
        yield "  ".join([*words, *numbers]).rstrip()


def shortened(text: str, width: int) -> str:
    """Text without its middle if it is too long: names of runs differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def percent(value: Spread | None) -> str:
    """A share and its spread in percent; a dash for None."""
    return "-" if value is None else _number(100 * value.mean, value.std and 100 * value.std, 1)


def plain(value: Spread | None) -> str:
    """A number and its spread."""
    return "-" if value is None else _number(value.mean, value.std, 2)


def _number(mean: float, std: float | None, digits: int) -> str:
    spread = "" if std is None else f"±{std:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"
