"""What ``sslgh study`` does; its signature is in ``cli.py``."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sslgh.engine.exit_codes import run_command
from sslgh.engine.launch import shutdown_distributed
from sslgh.engine.run_dir import write_text
from sslgh.recipe import RecipeError
from sslgh.recipe.loading import split_words
from sslgh.studies.paired_plot import study_plot
from sslgh.studies.plan import check_overrides, load_study
from sslgh.studies.records import read_records
from sslgh.studies.run_study import Places, StudyRun, chosen_blocks
from sslgh.studies.study_table import study_table


class StudyOptions(NamedTuple):
    """Options of ``sslgh study``, by the names of the command line."""

    table: bool
    plot: Path | None
    out: Path | None
    runs: Path | None
    block: str | None
    minutes: float | None


def run_or_print(words: Sequence[str], options: StudyOptions) -> int:
    """Run what a study lacks, then print its table, or only that; returns the exit code."""

    def work() -> None:
        names, overrides = split_words(words)
        if len(names) != 1:
            raise RecipeError(f"expected one file of a study, got {len(names)}")
        file = Path(names[0])
        if not file.is_file():
            raise RecipeError(f"{file}: no such study; give the path of its .yaml file")
        study = load_study(file)
        results = options.out or file.with_suffix("")
        places = Places(results, options.runs or Path("runs") / study.name)
        blocks = chosen_blocks(study, options.block)
        if options.plot is None and not options.table:
            StudyRun(study, places, check_overrides(overrides), blocks).run(options.minutes)
        records = read_records(study, places.results)
        if options.plot is not None:
            write_text(options.plot, study_plot(study, records))
        else:
            print(study_table(study, records))

    code = run_command(work)
    shutdown_distributed()
    return code
