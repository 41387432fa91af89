"""What the comparison leaves out: further metrics, and every class."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sslgh.evaluation.layout import WIDTH, aligned, percent, plain, shortened
from sslgh.evaluation.results import Metrics, Result, Scores, Spread
from sslgh.evaluation.table import Run, Section, described, rows, sections
from sslgh.functional.groups import Convention
from sslgh.recipe.printable import printable

Format = Callable[[Spread | None], str]
# Columns of a block, each with its metric and how it is written. Two blocks, since eight numbers with their spread do
# not fit into a line.
BLOCKS: tuple[dict[str, tuple[str, Format]], ...] = (
    {
        "macro F1": ("macro_f1", percent),
        "harmonic": ("harmonic", percent),
        "worst class": ("worst", percent),
        "ECE": ("calibration_error", percent),
    },
    {
        "few->many": ("few_as_many", percent),
        "many->few": ("many_as_few", percent),
        "norm many": ("norm_many", plain),
        "norm few": ("norm_few", plain),
    },
)
LEGEND = (
    "harmonic: harmonic mean over classes; ECE: calibration error of the scores' softmax, 15 bins",
    "few->many: few-shot test images taken for a many-shot class; norm: mean length of class weights",
)
TIGHTNESS = "tightness: mean squared distance within a class on the unit sphere, smaller is tighter"
LONGEST_CLASS = 30


def details_table(runs: Sequence[Run], *, convention: Convention = "thresholds") -> str:
    """Further metrics of runs, in the sections and lines of `comparison_table`.

    Mean over classes of F1; harmonic mean and worst of the class accuracies; calibration; confusion of
    few-shot with many-shot classes; lengths of class weights; tightness of the features, and of
    the embeddings of objectives that have some.

    Args:
        runs: Names of runs with their results.
        convention: Of the groups.

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


def _cells(
    columns: dict[str, tuple[str, Format]], convention: Convention, scores: Scores
) -> list[str]:
    metrics = scores.metrics[convention]
    return [write(metrics[name]) for name, write in columns.values()]


def _tightness(section: Section) -> Iterator[list[str]]:
    """Of the features of every run, then of the embeddings of objectives."""
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
        result: Of one run.

    Returns:
        A line for each class with its name, training images and accuracies in percent, mean over seeds; at most 100
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
    """Cut into lists whose columns, two characters apart, fit into a line."""
    block: list[str] = []
    for name in names:
        if sum(2 + max(len("100.0"), len(n)) for n in (*block, name)) > room and block:
            yield block
            block = []
        block.append(name)
    if block:
        yield block
