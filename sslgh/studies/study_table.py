"""The table of a study, made of its results alone."""

from collections.abc import Sequence
from typing import NamedTuple

from sslgh.studies.paired import PairedDifference, holm, paired_difference
from sslgh.studies.plan import Hypothesis, Study
from sslgh.studies.records import ArmResult, Records

DIAGNOSTICS = ("gh_share", "effective_rank", "visibility", "nmi", "drift", "churn")


class Outcome(NamedTuple):
    """A hypothesis and what the results say of it.

    Attributes:
        hypothesis: What was written down.
        difference: Differences in points; None without a block that has both arms.
        adjusted: p after Holm over all hypotheses of the study; None until each has a block.
    """

    hypothesis: Hypothesis
    difference: PairedDifference | None
    adjusted: float | None


def pair(study: Study, records: Records, arms: tuple[str, str], metric: str) -> dict[str, float]:
    """Difference first - second (percentage points) in each block whose two results share a warm-up."""
    found = {}
    for block in study.blocks:
        both = [records.get((block.name, arm)) for arm in arms]
        if None in both or len({(r.warmup, r.precision) for r in both if r}) > 1:
            continue
        values = [record.value(metric, study.groups) for record in both if record]
        if None not in values:
            first, second = (100 * value for value in values if value is not None)
            found[block.name] = first - second
    return found


def compare(
    study: Study, records: Records, arms: tuple[str, str], metric: str
) -> PairedDifference | None:
    """Statistics of `pair`; None without a block."""
    values = list(pair(study, records, arms, metric).values())
    return paired_difference(values) if values else None


def outcomes(study: Study, records: Records) -> list[Outcome]:
    """Every hypothesis of a study; Holm's correction waits until all can be tested."""
    found = [compare(study, records, each.arms, each.metric) for each in study.hypotheses]
    ps = [difference.p for difference in found if difference is not None]
    adjusted: Sequence[float | None] = holm(ps) if len(ps) == len(found) else [None] * len(found)
    return [Outcome(*each) for each in zip(study.hypotheses, found, adjusted, strict=True)]


def study_table(study: Study, records: Records) -> str:
    """Markdown: what there is, hypotheses, means of the arms, paired differences, diagnostics."""
    head = f"{study.question}\n\n{_progress(study, records)}"
    return "\n\n".join(filter(None, [head, *map(_titled, _tables(study, records))]))


def _titled(part: tuple[str, list[list[str]]]) -> str:
    title, rows = part
    if len(rows) < 2:
        return ""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join([f"{title}\n", *(f"| {' | '.join(cells)} |" for cells in lines)])


def _tables(study: Study, records: Records) -> list[tuple[str, list[list[str]]]]:
    reference = study.arms[0].name
    count = len(study.hypotheses)
    return [
        (
            f"Hypotheses: points, mean ± standard error over blocks, exact sign-flip test, Holm over {count}",
            _hypotheses(study, records),
        ),
        ("Accuracy, percent: mean over blocks", _means(study, records)),
        (
            f"Difference to {reference} in the same block: points, mean ± standard error (p, uncorrected)",
            _differences(study, records),
        ),
        ("Diagnostics, mean over blocks", _diagnostics(study, records)),
    ]


def _progress(study: Study, records: Records) -> str:
    cells = [(block.name, arm.name) for arm, block in study.cells()]
    done = [records[cell] for cell in cells if cell in records]
    text = (
        f"{len(done)} of {len(cells)} results ({len(study.blocks)} blocks, {len(study.arms)} arms)"
    )
    if not done:
        return f"{text}."
    for name in ("commit", "device", "precision", "threads"):
        text += f"; {name} {', '.join(_distinct(done, name))}"
    if mixed := [block.name for block in study.blocks if _is_mixed(done, block.name)]:
        text += f"; block {', '.join(mixed)} has results of several warm-ups, which are not paired"
    if late := sum(record.hypotheses != study.hypotheses_hash() for record in done):
        text += f"; {late} results are older than the hypotheses, which are exploratory for them"
    return f"{text}."


def _distinct(records: Sequence[ArmResult], name: str) -> list[str]:
    return sorted({str(getattr(record, name)) for record in records})


def _is_mixed(records: Sequence[ArmResult], block: str) -> bool:
    return len({record.warmup for record in records if record.block == block}) > 1


def _hypotheses(study: Study, records: Records) -> list[list[str]]:
    rows = [["difference", "metric", "blocks", "points", "better in", "p", "p (Holm)"]]
    for each, difference, adjusted in outcomes(study, records):
        name = " - ".join(each.arms)
        if difference is None:
            rows.append([name, each.metric, "0", "", "", "", ""])
            continue
        better = f"{sum(v > 0 for v in difference.values)} of {len(difference.values)}"
        holm_p = "" if adjusted is None else f"{adjusted:.3f}"
        blocks = str(len(difference.values))
        rows.append(
            [name, each.metric, blocks, _points(difference), better, f"{difference.p:.3f}", holm_p]
        )
    return rows


def _points(difference: PairedDifference) -> str:
    error = "" if difference.error is None else f"±{difference.error:.2f}"
    return f"{difference.mean:+.2f}{error}"


def _means(study: Study, records: Records) -> list[list[str]]:
    rows = [["arm", "", "blocks", *study.metrics]]
    for arm in study.arms:
        own = [record for (_, name), record in records.items() if name == arm.name]
        if own:
            cells = [
                _mean([r.value(metric, study.groups) for r in own], 100) for metric in study.metrics
            ]
            rows.append([arm.name, arm.about, str(len(own)), *cells])
    return rows


def _mean(values: Sequence[float | None], factor: float) -> str:
    known = [factor * value for value in values if value is not None]
    return f"{sum(known) / len(known):.{1 if factor == 100 else 2}f}" if known else ""


def _differences(study: Study, records: Records) -> list[list[str]]:
    rows = [["arm", "blocks", *study.metrics]]
    reference = study.arms[0].name
    for arm in study.arms[1:]:
        found = [compare(study, records, (arm.name, reference), metric) for metric in study.metrics]
        if any(found):
            blocks = max(len(each.values) for each in found if each)
            cells = [f"{_points(each)} ({each.p:.3f})" if each else "" for each in found]
            rows.append([arm.name, str(blocks), *cells])
    return rows


def _diagnostics(study: Study, records: Records) -> list[list[str]]:
    rows = [["arm", *DIAGNOSTICS, "training (s)"]]
    for arm in study.arms:
        own = [record for (_, name), record in records.items() if name == arm.name]
        if own:
            cells = [_mean([r.diagnostics.get(name) for r in own], 1) for name in DIAGNOSTICS]
            seconds = sum(record.seconds["training"] for record in own) / len(own)
            rows.append([arm.name, *cells, f"{seconds:.0f}"])
    return rows
