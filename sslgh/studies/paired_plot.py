"""A plot of paired differences: a dot per block, mean and standard error per comparison, as SVG."""

from collections.abc import Mapping
from html import escape

from sslgh.studies.paired import paired_difference
from sslgh.studies.plan import Study
from sslgh.studies.records import Records
from sslgh.studies.study_table import pair

ROW, LEFT, WIDTH, MARGIN = 26, 300, 460, 30


def study_plot(study: Study, records: Records) -> str:
    """SVG of every hypothesis, then of every arm's difference to the first one in the study's first metric."""
    compared = [(each.arms, each.metric) for each in study.hypotheses]
    reference, metric = study.arms[0].name, study.metrics[0]
    others = [((arm.name, reference), metric) for arm in study.arms[1:]]
    rows = {
        f"{' - '.join(arms)}, {name}": pair(study, records, arms, name)
        for arms, name in [*compared, *(other for other in others if other not in compared)]
    }
    return dot_plot({label: values for label, values in rows.items() if values})


def dot_plot(rows: Mapping[str, Mapping[str, float]]) -> str:
    """SVG with one row per label; the values (points) of its blocks stand on a common axis through 0."""
    largest = max((abs(v) for values in rows.values() for v in values.values()), default=0) or 1.0
    middle, height = LEFT + WIDTH / 2, ROW * len(rows) + 2 * MARGIN
    scale = (WIDTH / 2 - 10) / largest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + MARGIN}" height="{height}">',
        '<g font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{MARGIN}" y2="{height - MARGIN}" stroke="gray"/>',
    ]
    for number, (label, values) in enumerate(rows.items()):
        parts += _row(label, values, (middle, MARGIN + ROW * (number + 0.5)), scale)
    for value in (-largest, 0, largest):
        x = middle + scale * value
        parts.append(_text(x, height - 10, f"{value:+.2g}" if value else "0", "middle"))
    parts.append(_text(LEFT + WIDTH, height - 10, "points", "start"))
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _row(
    label: str, values: Mapping[str, float], origin: tuple[float, float], scale: float
) -> list[str]:
    middle, y = origin
    found = paired_difference(list(values.values()))
    mean = middle + scale * found.mean
    parts = [_text(LEFT - 10, y + 4, label, "end")]
    if found.error is not None:
        low, high = (middle + scale * (found.mean + side * found.error) for side in (-1, 1))
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="crimson" stroke-width="3"/>'
        )
    parts.append(f'<circle cx="{mean:.1f}" cy="{y:.1f}" r="5" fill="crimson"/>')
    for block, value in values.items():
        parts.append(
            f'<circle cx="{middle + scale * value:.1f}" cy="{y:.1f}" r="3" fill="steelblue" fill-opacity="0.6">'
            f"<title>{escape(block)}: {value:+.2f}</title></circle>"
        )
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
