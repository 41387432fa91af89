"""The curves of a run, each with a sentence on what it shows."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sslgh.report.curves import Curve, plot_svg
from sslgh.report.run_record import RunRecord

# Share of an effective rank that a run may lose; the harm alarm of the engine has the same limit.
LOST_RANK, RISEN = 0.25, 0.1
# Share of the curve that counts as its end.
END = 0.1


class Figure(NamedTuple):
    """A plot and what it shows.

    Attributes:
        title: What is plotted.
        svg: The plot.
        sentence: What it shows of this run.
    """

    title: str
    svg: str
    sentence: str


def figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """The plots for which something was logged; several runs share the axes."""
    return [figure for plot in PLOTS if (figure := plot(runs)) is not None]


def _loss(runs: Sequence[RunRecord]) -> Figure | None:
    return _figure(runs, "Loss of the SSL method, without GH", "SSL loss", _ssl, _loss_sentence)


def _gh(runs: Sequence[RunRecord]) -> Figure | None:
    return _figure(
        runs, "Term of GH", "GH term", lambda run: run.series("train", "gh"), _gh_sentence
    )


def _rank(runs: Sequence[RunRecord]) -> Figure | None:
    series = lambda run: run.series("train", "effective_rank")  # noqa: E731
    return _figure(
        runs, "Effective rank of the embeddings", "effective rank", series, _rank_sentence
    )


def _accuracy(runs: Sequence[RunRecord]) -> Figure | None:
    """Nearest neighbors of a run by group of classes; of several runs the mean over classes."""
    if len(runs) > 1:
        series = lambda run: run.series("health", "knn_balanced")  # noqa: E731
        return _figure(
            runs, "Nearest neighbors", "accuracy (mean over classes)", series, _knn_sentence
        )
    named = {f"knn_{group}": group for group in ("many", "medium", "few")}
    curves = [Curve(name, *runs[0].series("health", key)) for key, name in named.items()]
    return _drawn(runs, "Nearest neighbors by group of classes", "accuracy", curves, _knn_sentence)


def _clusters(runs: Sequence[RunRecord]) -> Figure | None:
    series = lambda run: run.series("refresh", "visibility")  # noqa: E731
    return _figure(
        runs, "Trust in the clusters at each refresh", "visibility", series, _cluster_sentence
    )


PLOTS: tuple[Callable[[Sequence[RunRecord]], Figure | None], ...] = (
    _loss,
    _gh,
    _rank,
    _accuracy,
    _clusters,
)

Series = Callable[[RunRecord], tuple[list[float], list[float]]]
Sentence = Callable[[RunRecord], str]


def _ssl(run: RunRecord) -> tuple[list[float], list[float]]:
    found = run.series("train", "ssl")
    return found if found[0] else run.series("train", "loss")


def _figure(
    runs: Sequence[RunRecord], title: str, label: str, series: Series, sentence: Sentence
) -> Figure | None:
    several = len(runs) > 1
    curves = [Curve(run.name if several else "", *series(run)) for run in runs]
    return _drawn(runs, title, label, curves, sentence)


def _drawn(
    runs: Sequence[RunRecord], title: str, label: str, curves: list[Curve], sentence: Sentence
) -> Figure | None:
    curves = [curve for curve in curves if curve.epochs]
    if not curves:
        return None
    prefix = [f"{run.name}: " if len(runs) > 1 else "" for run in runs]
    words = [p + text for p, run in zip(prefix, runs, strict=True) if (text := sentence(run))]
    shaded = _ramp(runs[0]) if len(runs) == 1 else None
    return Figure(title, plot_svg(curves, label, shaded=shaded), " ".join(words))


def _ramp(run: RunRecord) -> tuple[float, float] | None:
    """Epochs in which GH is ramped up."""
    begin = _gh_begin(run)
    if begin is None or run.recipe.harmonize is None:
        return None
    return begin, begin + run.recipe.harmonize.ramp_epochs


def _gh_begin(run: RunRecord) -> float | None:
    """First logged epoch in which GH acts; before, its term is logged as 0."""
    points = zip(*run.series("train", "gh"), strict=True)
    return next((epoch for epoch, value in points if value != 0), None)


def _loss_sentence(run: RunRecord) -> str:
    epochs, values = _ssl(run)
    if len(values) < 2:
        return ""
    return f"From {values[0]:.3g} to {values[-1]:.3g} in {epochs[-1]:.0f} epochs; at the end {_trend(values)}."


def _trend(values: list[float]) -> str:
    """Whether the last tenth of a curve differs from the tenth before by more than its own scatter explains."""
    part = max(3, round(END * len(values)))
    if len(values) < 2 * part:
        return "it is too short for a trend"
    before, last = np.array(values[-2 * part : -part]), np.array(values[-part:])
    error = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / part)
    change = float(last.mean() - before.mean())
    if abs(change) <= 2 * error:
        return "it is level within its scatter"
    return "it still falls" if change < 0 else "it rises"


def _gh_sentence(run: RunRecord) -> str:
    begin, (_, values) = _gh_begin(run), run.series("train", "gh")
    if begin is None:
        return "GH has not begun yet." if values else ""
    _, shares = run.series("train", "gh_share")
    share = f", {100 * shares[-1]:.0f} % of the loss" if shares else ""
    return (
        f"GH acts from epoch {begin:.0f} on and is ramped up (shaded): a rise there is the ramp, not divergence. "
        f"At the end it is {values[-1]:.3g}{share}."
    )


def _rank_sentence(run: RunRecord) -> str:
    _, values = run.series("train", "effective_rank")
    if not values:
        return ""
    # A network that has learned nothing yet spreads evenly: the first tenth does not count.
    later = values[round(END * len(values)) :]
    highest, lowest = max(later), min(later)
    if values[-1] < (1 - LOST_RANK) * highest:
        # Of a collapse it does not recover; in a short run the fall from the random start takes more than a tenth.
        if values[-1] > (1 + RISEN) * lowest:
            return f"It fell to {lowest:.3g} and has risen to {values[-1]:.3g} since: no sign of collapse."
        return f"It fell from {highest:.3g} to {values[-1]:.3g}: embeddings collapse into fewer dimensions."
    return f"{values[-1]:.3g} dimensions at the end, {highest:.3g} at most after the beginning: no sign of collapse."


def _knn_sentence(run: RunRecord) -> str:
    _, values = run.series("health", "knn_balanced")
    if not values:
        return ""
    return f"Measured on training labels during the run: {100 * values[-1]:.0f} % over classes at the end."


def _cluster_sentence(run: RunRecord) -> str:
    refreshes = run.lines.get("refresh", [])
    if not refreshes:
        return ""
    last = refreshes[-1]
    accepted = sum(bool(line.get("accepted")) for line in refreshes)
    words = f"{accepted} of {len(refreshes)} refreshes were accepted"
    if last.get("classes") is not None:
        words += f"; the last has {last['classes']} clusters, the largest with {100 * last['largest']:.0f} % of the images"
    return words + "."
