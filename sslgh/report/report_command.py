"""``sslgh report RUN...``, and the page at the end of ``sslgh run``."""

from collections.abc import Sequence
from pathlib import Path

import typer

from sslgh.engine.exit_codes import run_command
from sslgh.recipe.errors import printable
from sslgh.report.run_page import write_run_report


def report_command(directories: Sequence[Path], out: Path | None) -> int:
    """Write the page of runs and print where it is; returns the exit code."""

    def work() -> None:
        typer.echo(f"{printable(write_run_report(directories, out))}: open it in a browser")

    return run_command(work)


def report_of_finished(directory: Path) -> None:
    """Write the page of a run that has ended; what hinders it is only printed, since the run is done."""
    try:
        write_run_report([directory])
    except (ValueError, OSError) as error:
        typer.echo(f"no report.html: {printable(str(error))}", err=True)
