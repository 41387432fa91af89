"""The last lines of a command: what it wrote, how good that is, and what comes next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sslgh.data import DataError
from sslgh.engine.run_dir import read_metrics
from sslgh.evaluation import Result, check_probes
from sslgh.evaluation.tables import percent
from sslgh.recipe import Recipe, RecipeError, make_recipe
from sslgh.recipe.loading import apply_overrides
from sslgh.recipe.schema import Probe

WRITTEN = (
    "backbone.safetensors",
    "classifier.safetensors",
    "metrics.jsonl",
    "probe",
    "report.html",
)
LOAD = "from pathlib import Path; from sslgh.models import load_backbone; backbone, card = load_backbone(Path({!r}))"
USUAL = "probe=[{protocol: longtail}, {protocol: knn}]"


def last_lines(recipe: Recipe, results: Sequence[Result], *, details: bool) -> list[str]:
    """Three lines on a finished run.

    Args:
        recipe: Recipe of the run.
        results: What the command has measured; empty if it has measured nothing.
        details: Whether the command has printed the further tables.
    """
    run = recipe.directory
    found = [name for name in WRITTEN if (run / name).exists()]
    quality = _accuracy(results[0]) if results else _loss(run)
    return [
        f"{shlex.quote(str(run))}: {', '.join(found)}",
        *([quality] if quality else []),
        *([step] if (step := _next_step(recipe, results, details=details)) else []),
    ]


def _accuracy(result: Result) -> str:
    """The balanced accuracy of one objective: of `la` where there is one."""
    name = "la" if "la" in result.scores else next(iter(result.scores))
    metrics = result.scores[name].metrics["thresholds"]
    few = f", of few-shot classes {percent(metrics['few'])} %" if metrics["few"] else ""
    estimate = ", out of fold" if "out_of_fold" in result.settings else ""
    return (
        f"mean accuracy over classes {percent(metrics['average'])} %{few} ({name} by "
        f"{result.protocol} v{result.version}{estimate})"
    )


def _loss(run: Path) -> str:
    """First and last logged training loss; empty if none was logged."""
    losses = [line["loss"] for line in read_metrics(run) if line.get("kind") == "train"]
    if not losses:
        return ""
    return f"loss {losses[0]:.4g} at first, {losses[-1]:.4g} at last; no accuracy was measured"


def _next_step(recipe: Recipe, results: Sequence[Result], *, details: bool) -> str:
    """A command that works, or the code that loads the backbone; empty if nothing is left to print."""
    run = shlex.quote(str(recipe.directory))
    if results:
        return "" if details else f"next: sslgh probe {run} --details"
    if recipe.probe:
        return f"next: sslgh probe {run}"
    try:
        check_probes(recipe.data, usual_probes(), recipe.directory)
    except (DataError, RecipeError):
        return f"next, in Python: {LOAD.format(str(recipe.directory))}"
    return f"next: sslgh probe {run} {shlex.quote(USUAL)}"


def usual_probes(overrides: Sequence[str] = ()) -> tuple[Probe, ...]:
    """The probes that are advised and taken where no recipe names any; ``overrides`` may change them."""
    # A recipe needs one of method and finetune; it is not used.
    settings = {"name": "features", "data": {"source": "arrays"}, "finetune": {}}
    return make_recipe(apply_overrides(settings, [USUAL, *overrides])).probe
