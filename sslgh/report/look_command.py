"""``sslgh look FOLDER``."""

import time
from pathlib import Path

import typer

from sslgh.engine.exit_codes import run_command
from sslgh.engine.launch import shutdown_distributed
from sslgh.explore.extra import optional
from sslgh.explore.look import BUDGET, LookResult, last_lines, look_folder
from sslgh.report.look_page import look_page
from sslgh.report.page import write_page


def look_command(
    folder: Path,
    out: Path | None,
    model: str | None,
    *,
    budget: int,
    workers: int | None,
) -> int:
    """Look at a folder, write its tables and its page, and print what was found; returns the exit code.

    Args:
        folder: Any tree of photos.
        out: Folder for the results; None: next to ``folder``.
        model: Name of the network; None: the best to be had here.
        budget: Number of photos to label first.
        workers: Loader processes per rank.
    """

    def work() -> None:
        begun = time.monotonic()
        result = look_and_report(folder, out, model, budget=budget, workers=workers)
        if result is not None:
            typer.echo("\n".join(last_lines(result, time.monotonic() - begun)))

    code = run_command(work)
    shutdown_distributed()
    return code


def look_and_report(
    folder: Path,
    out: Path | None,
    model: str | None,
    *,
    budget: int = BUDGET,
    workers: int | None = None,
    quiet: bool = False,
) -> LookResult | None:
    """Look at a folder as `look_folder` does, and write its page next to the tables."""
    optional("jinja2")  # before the photos are read, not after
    result = look_folder(folder, out, model, budget=budget, workers=workers, quiet=quiet)
    if result is not None:
        write_page(result.out / "report.html", look_page(result))
    return result
