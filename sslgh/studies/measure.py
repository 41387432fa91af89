"""What an arm reached: its probes, and what its log shows."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sslgh.evaluation import Result
from sslgh.evaluation.results import CONVENTIONS
from sslgh.functional.groups import GROUPS
from sslgh.recipe import Recipe
from sslgh.studies.records import Metrics

KEPT = (*GROUPS, "average", "accuracy", "worst")
# From training lines the last value is kept; drift and churn settle after the third refresh.
LAST = ("effective_rank", "alignment", "uniformity", "loss", "gh")
SETTLED = 3


def result_metrics(results: Sequence[Result]) -> Metrics:
    """Means over seeds of the heads, rounded to six digits: protocol, objective, convention, metric."""
    return {
        result.protocol: {
            objective: {
                convention: {name: _mean(scores.metrics[convention][name]) for name in KEPT}
                for convention in CONVENTIONS
            }
            for objective, scores in result.scores.items()
        }
        for result in results
    }


def _mean(spread: Any) -> float | None:
    return None if spread is None else round(spread.mean, 6)


def diagnostics(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What the log of an arm says of GH and of the embeddings.

    The last values of training; the median ``gh_share`` where the GH term acts; the largest ``drift`` and
    ``churn`` after the third refresh; ``nmi`` and ``visibility`` of the last refresh.
    """
    trained = [line for line in lines if line["kind"] == "train"]
    refreshes = [line for line in lines if line["kind"] == "refresh"]
    shares = [line["gh_share"] for line in trained if line.get("gh_share")]
    settled = refreshes[SETTLED:]
    values: dict[str, float | None] = {name: _last(trained, name) for name in LAST}
    values["gh_share"] = median(shares) if shares else None
    for name in ("drift", "churn"):
        known = [line[name] for line in settled if line.get(name) is not None]
        values[name] = max(known, default=None)
    for name in ("nmi", "visibility"):
        values[name] = _last(refreshes, name)
    return values


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if name in line), None)


def training_seconds(lines: Sequence[Mapping[str, Any]], recipe: Recipe, branch: int) -> float:
    """Seconds of the epochs from ``branch`` on, at the median rate of the log, whatever interrupted them."""
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    if not rates:
        return 0.0
    share = 1 - branch / recipe.train.epochs
    steps = share * max(int(line["step"]) for line in lines)
    return round(steps * recipe.train.batch_size / float(median(rates)), 1)
