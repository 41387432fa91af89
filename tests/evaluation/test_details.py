from dataclasses import replace

import pytest

from sslgh.evaluation import class_table, details_table
from sslgh.evaluation.results import METRICS, Result, Scores, Spread

TIGHT = {"many": 0.25, "medium": 0.5, "few": None, "average": 0.4}


def result(*, std=None, seeds=1, names=("ce", "la"), counts=(500, 300, 50, 5)):
    values = {name: Spread(0.01 * place, std) for place, name in enumerate(METRICS, 1)}
    values["norm_few"] = None
    metrics = {"thresholds": values, "thirds": values}
    tightness = {split: {"thresholds": TIGHT, "thirds": TIGHT} for split in ("train", "test")}
    accuracy = [(0.5 + 0.001 * c) % 1 for c in range(len(counts) - 1)]
    return Result(
        protocol="longtail",
        version=1,
        summary="a line",
        settings={"seeds": seeds},
        class_names=[f"class {c}" for c in range(len(counts))],
        group_counts=list(counts),
        train_counts=list(counts),
        test_counts=[10] * len(counts),
        scores={
            name: Scores(metrics, [*accuracy, None], tightness if name == "elm" else None)
            for name in names
        },
        tightness=tightness,
    )


def block(table, head):
    """Rows of the block whose head line holds a word."""
    (found,) = [part for part in table.split("\n\n") if head in part.splitlines()[-1]] or [
        part for part in table.split("\n\n") if any(head in line for line in part.splitlines()[:2])
    ]
    return [line.split() for line in found.splitlines()]


def test_every_metric_stands_under_its_name():
    table = details_table([("run", [result(names=("ce",))])])
    place = {name: f"{place}.0" for place, name in enumerate(METRICS, 1)}
    assert block(table, "macro F1")[1] == [
        "ce",
        "run",
        *(place[name] for name in ("macro_f1", "harmonic", "worst", "calibration_error")),
    ]
    norm = f"{0.01 * (1 + METRICS.index('norm_many')):.2f}"
    assert block(table, "many->few")[1] == [
        *("ce", "run", place["few_as_many"], place["many_as_few"]),
        *(norm, "-"),
    ]


def test_runs_stand_under_each_other_with_their_spread():
    table = details_table([(name, [result(std=0.002, seeds=3)]) for name in ("a", "b")])
    rows = block(table, "macro F1")[1:]
    first = f"{1 + METRICS.index('macro_f1')}.0±0.2"
    assert [row[:3] for row in rows] == [
        ["ce", "a", first],
        ["b", first, rows[1][2]],
        ["la", "a", first],
        ["b", first, rows[1][2]],
    ]
    assert "mean±std of 3 seeds" in table


def test_tightness_is_that_of_the_features_and_of_embeddings_where_there_are_some():
    table = details_table([("run", [result(names=("ce", "elm"))])])
    numbers = ["0.250", "-", "0.250", "-"]
    assert block(table, "tightness:")[2:] == [
        ["features", "run", *numbers],
        ["elm", "run", *numbers],
    ]
    bare = replace(result(names=("ce",)), tightness={})
    assert "tightness" not in details_table([("run", [bare])])


@pytest.mark.parametrize("convention", ["thresholds", "thirds"])
def test_no_line_is_longer_than_100_characters(convention):
    names = ("balanced-softmax", "elm-contrast", "elm")
    entry = result(std=0.1234, seeds=3, names=names, counts=tuple(range(5, 1005)))
    run = (
        "cifar100-lt-imbalance-100-simclr-harmonized-by-faiss-and-fine-tuned-with-the-whole-recipe"
    )
    table = details_table([(f"{run}-{end}", [entry]) for end in "ab"], convention=convention)
    assert max(map(len, table.splitlines())) <= 100
    assert len(table.splitlines()) > 20


def test_every_class_has_a_line_with_its_images_and_accuracies():
    lines = class_table(result(seeds=2)).splitlines()
    assert lines[0] == "longtail v1: a line"
    assert lines[1].endswith("mean of 2 seeds")
    assert lines[3].split() == ["class", "images", "ce", "la"]
    assert lines[4].split() == ["class", "0", "500", "50.0", "50.0"]
    assert lines[7].split() == ["class", "3", "5", "-", "-"]
    assert len(lines) == 8


def test_more_objectives_than_fit_go_into_further_blocks():
    names = tuple(f"objective-{number}" for number in range(22))
    entry = result(names=names)
    entry = replace(entry, class_names=["a name of a class that never seems to end at all"] * 4)
    parts = class_table(entry).split("\n\n")[1:]
    shown = [word for part in parts for word in part.splitlines()[0].split()[2:]]
    assert shown == list(names)
    assert all(len(part.splitlines()) == 5 for part in parts)
    assert max(len(line) for part in parts for line in part.splitlines()) <= 100


def test_no_results_make_an_empty_table():
    assert details_table([]) == ""
