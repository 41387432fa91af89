"""Write the page and the plot of every study in docs/studies from its JSON files.

    .venv/bin/python scripts/studies/study_pages.py

A page is docs/studies/NAME.md, its plot NAME.svg. With --check nothing is written, and the exit code is 1
if a page is not what the results say.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from sslgh.studies.paired_plot import study_plot
from sslgh.studies.plan import Study, load_study
from sslgh.studies.records import read_records
from sslgh.studies.study_table import study_table

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "studies"


def pages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every generated file of a folder of studies, with its content."""
    for file in sorted(folder.glob("*.yaml")):
        study = load_study(file)
        records = read_records(study, file.with_suffix(""))
        yield (
            file.with_suffix(".md"),
            page(study, file.name, study_table(study, records), bool(records)),
        )
        if records:
            yield file.with_suffix(".svg"), study_plot(study, records)


def page(study: Study, file: str, table: str, has_results: bool) -> str:
    """Markdown of a study's page."""
    launch = f"[{file}]({file}) says how to run it."
    results = f"The results are in `docs/studies/{study.name}/`, one JSON file per block and arm."
    plot = f"![paired differences]({study.name}.svg)" if has_results else "Not run yet."
    parts = [
        f"# {study.name}",
        "Written by `scripts/studies/study_pages.py`.",
        launch + " " + results,
    ]
    return "\n\n".join([*parts, table, plot]) + "\n"


def main() -> int:
    """Write or check; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for path, text in pages(FOLDER):
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not options.check:
            path.write_text(text)
    print(f"{'stale' if options.check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
