"""The page of runs: what it reads of a run directory, its sentences, tables and curves."""

import json

import pytest

from sslgh.evaluation.results import METRICS, Result, Scores, Spread, write_results
from sslgh.recipe import RecipeError, make_recipe
from sslgh.recipe.run_recipe import run_text
from sslgh.report.curves import Curve, plot_svg
from sslgh.report.report_command import report_of_finished
from sslgh.report.run_curves import figures
from sslgh.report.run_page import run_page, write_run_report
from sslgh.report.run_record import RunRecord, read_run
from sslgh.report.run_tables import comparisons, paired
from sslgh.report.views import SHOWN, view_pictures


def recipe(directory, **blocks):
    settings = {"name": directory.name, "run_dir": str(directory), "data": {"source": "digits"}}
    return make_recipe(settings | {"method": {"name": "simclr"}} | blocks)


def result(accuracy: list[float], **metrics: float) -> Result:
    values = dict.fromkeys(METRICS, Spread(0.5, None))
    values |= {name: Spread(value, None) for name, value in metrics.items()}
    scores = {"knn": Scores(dict.fromkeys(("thresholds", "thirds"), values), accuracy)}
    count = len(accuracy)
    counts, nine = [200, 50, 5, 5, 5][:count], [9] * count
    return Result("knn", 1, "neighbors", {}, list("abcde")[:count], counts, nine, nine, scores)


def train_lines(values, **more):
    return [
        {"kind": "train", "step": n, "epoch": n, "ssl": v, "effective_rank": 30.0}
        | {key: series[n] for key, series in more.items()}
        for n, v in enumerate(values)
    ]


@pytest.fixture
def run(tmp_path):
    """Makes a run directory of lines of metrics and results."""

    def make(name, lines, results=(), **blocks):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "recipe.yaml").write_text(run_text(recipe(directory, **blocks)))
        (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        write_results(results, directory)
        return directory

    return make


def test_a_run_under_way_is_read_as_far_as_it_is(run) -> None:
    directory = run("half", train_lines([3.0, 2.0]))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('\n{"kind": "train", "ste')
    record = read_run(directory)
    assert record.series("train", "ssl") == ([1, 2], [3, 2])
    assert record.results == []


def test_what_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError):
        write_run_report([tmp_path])


def sentence(run, title: str) -> str:
    return next(f.sentence for f in figures([read_run(run)]) if title in f.title)


def test_the_ramp_of_gh_is_no_divergence_of_the_method(run) -> None:
    gh = [0.0] * 10 + [0.5, *map(float, range(1, 20))]
    lines = train_lines([30.0 - n for n in range(30)], gh=gh)
    directory = run("ramp", lines, harmonize={"ramp_epochs": 5})
    assert "at the end it still falls" in sentence(directory, "SSL")
    assert sentence(directory, "Term of GH").startswith("GH acts from epoch 11 on")


def test_scatter_is_no_trend(run) -> None:
    directory = run("level", train_lines([9.0] * 10 + [1.0, 1.2, 0.9, 1.1] * 10))
    assert "level within its scatter" in sentence(directory, "SSL")


def test_a_falling_rank_is_a_collapse_but_not_the_fall_from_the_random_start(run) -> None:
    lines = train_lines([1.0] * 20)
    for n, line in enumerate(lines):
        line["effective_rank"] = 60.0 if n < 2 else 30.0
    assert "no sign of collapse" in sentence(run("fine", lines), "rank")
    lines[-1]["effective_rank"] = 20.0
    assert "collapse into fewer" in sentence(run("bad", lines), "rank")


def test_a_rank_that_rises_after_its_fall_is_no_collapse(run) -> None:
    lines = train_lines([1.0] * 20)
    for n, line in enumerate(lines):
        line["effective_rank"] = max(60 - 6 * n, 20 + 0.7 * n)
    found = sentence(run("recovers", lines), "rank")
    assert "has risen to 33.3" in found
    assert "no sign of collapse" in found
    for n, line in enumerate(lines):
        line["effective_rank"] = 40.7 / (1 + n)
    assert "collapse into fewer" in sentence(run("falls", lines), "rank")


def test_differences_are_paired_over_classes() -> None:
    first, second = result([0.5, 0.6, 0.9]), result([0.6, 0.7, 0.9])
    assert paired([("a", first), ("b", second)]) == [
        "knn: b less a +6.7 points over classes, standard error 3.3"
    ]


def test_the_best_of_a_column_is_the_lowest_where_low_is_good() -> None:
    runs = [
        RunRecord(name, None, {}, [result([0.5] * 5, few=few, calibration_error=error)], {})
        for name, few, error in (("a", 0.4, 0.1), ("b", 0.6, 0.2))
    ]
    (found,) = comparisons(runs)
    few = found.groups.heads.index("few")
    assert [row[few] for row in found.groups.rows] == ["40.0", "60.0"]
    assert found.groups.best == [set(), {few}]
    assert found.further.best == [{found.further.heads.index("calibration error")}, set()]


def test_a_page_shows_results_curves_views_and_alarms_and_loads_nothing(run, monkeypatch) -> None:
    text = "GH seems to harm <b>this</b> run"
    lines = [*train_lines([3.0, 2.0, 1.5]), {"kind": "alarm", "step": 1, "epoch": 1, "text": text}]
    directories = [run(name, lines, [result([0.5, 0.75, 0.5])]) for name in ("one", "two")]
    view = ("data:image/jpeg;base64,AA", "data:image/jpeg;base64,BB")
    monkeypatch.setattr("sslgh.report.run_page.view_pictures", lambda recipe: [view])
    page = run_page([read_run(directory) for directory in directories], directories)
    assert "GH seems to harm &lt;b&gt;this&lt;/b&gt; run" in page
    assert page.count("<svg") == 2
    assert 'alt="First view of image 1"' in page
    assert "two less one +0.0 points" in page
    assert "http:" not in page.replace("http://www.w3.org/", "")
    assert "https:" not in page


def test_views_are_those_of_the_first_epoch(tmp_path) -> None:
    found = view_pictures(recipe(tmp_path / "x"))
    assert len(found) == SHOWN
    assert all(first != second for first, second in found)
    assert found == view_pictures(recipe(tmp_path / "x"))


def test_a_run_whose_images_are_gone_has_no_views(tmp_path) -> None:
    data = {"source": "folder", "root": str(tmp_path / "gone")}
    assert view_pictures(recipe(tmp_path / "y", data=data)) == []


def test_a_plot_takes_the_colors_of_the_page() -> None:
    svg = plot_svg([Curve("", [1, 2], [3, 4])], "loss", shaded=(1, 1.5))
    assert svg.startswith('<svg role="img" aria-label="loss by epoch"')
    assert "currentColor" in svg
    assert "var(--accent)" in svg
    assert "#010203" not in svg
    assert "<metadata" not in svg


def test_a_report_that_cannot_be_written_does_not_fail_the_run(run, capsys) -> None:
    directory = run("fine", train_lines([2.0, 1.0]))
    (directory / "report.html").mkdir()
    report_of_finished(directory)
    assert "no report.html" in capsys.readouterr().err
