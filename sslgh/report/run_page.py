"""``report.html`` of runs, done or under way."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sslgh.recipe.errors import printable
from sslgh.report.page import render, write_page
from sslgh.report.run_curves import figures
from sslgh.report.run_record import RunRecord, read_run
from sslgh.report.run_tables import comparisons
from sslgh.report.views import view_pictures


def write_run_report(directories: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of runs; returns its path, by default ``report.html`` in the directory of the first.

    Raises:
        RecipeError: If a directory is no run.
        ValueError: If a library of the extra `look` is missing, or a result cannot be read.
        OSError: If the page cannot be written.
    """
    path = out or directories[0] / "report.html"
    write_page(path, run_page([read_run(directory) for directory in directories], directories))
    return path


def run_page(runs: Sequence[RunRecord], directories: Sequence[Path]) -> str:
    """The page as text."""
    words = " ".join(shlex.quote(str(directory)) for directory in directories)
    return render(
        "run.html",
        "run.js",
        title=printable(", ".join(run.name for run in runs)),
        runs=[_head(run) for run in runs],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        alarms=[
            (run.name, alarm["text"])
            for run in runs
            for alarm in run.lines.get("alarm", [])
            if "text" in alarm
        ],
        views=view_pictures(runs[0].recipe),
        figures=figures(runs),
        comparisons=comparisons(runs),
        command=f"sslgh report {words}",
    )


def _head(run: RunRecord) -> dict[str, str]:
    """What stands at the top of a page on a run."""
    recipe = run.recipe
    method = "supervised" if recipe.method is None else recipe.method.name
    epochs = max((line["epoch"] + 1 for lines in run.lines.values() for line in lines), default=0)
    state = str(run.status.get("state", "not begun"))
    return {
        "name": run.name,
        "method": method + (" with GH" if recipe.harmonize is not None else ""),
        "backbone": recipe.model.backbone,
        "epochs": f"{epochs} of {recipe.train.epochs}",
        "state": state,
    }
