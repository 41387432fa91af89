"""The studies of docs/studies can be run until they are complete, and their pages are what their results say."""

import importlib.util
from pathlib import Path

import pytest

from sslgh.studies.plan import block_recipes, load_study
from sslgh.studies.records import read_records
from sslgh.studies.run_study import check_metrics

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "docs" / "studies").glob("*.yaml"))


def script():
    path = REPOSITORY / "scripts" / "studies" / "study_pages.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date() -> None:
    found = dict(script().pages(REPOSITORY / "docs" / "studies"))
    assert len(found) >= len(FILES) >= 2
    stale = [path.name for path, text in found.items() if path.read_text() != text]
    assert stale == [], "run .venv/bin/python scripts/studies/study_pages.py"


def test_a_page_that_its_results_do_not_make_is_noticed(tmp_path) -> None:
    (tmp_path / "x.yaml").write_text(FILES[0].read_text())
    ((path, text),) = script().pages(tmp_path)
    assert path == tmp_path / "x.md"
    assert "Not run yet." in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_says_how_to_run_it_and_can_be_run_until_it_is_complete(file, tmp_path) -> None:
    study = load_study(file)
    assert study.name == file.stem
    assert study.hypotheses
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"docs/studies/{file.name}" in line for line in head)
    records = read_records(study, file.with_suffix(""))
    if len(records) == len(list(study.cells())):
        return  # what it compared may be deleted since; each result names its commit
    for block in study.blocks:
        recipes = block_recipes(study, block, tmp_path / block.name)
        check_metrics(study, recipes["warmup"])
