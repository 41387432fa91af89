from dataclasses import replace

import pytest

from sslgh.evaluation import comparison_table
from sslgh.evaluation.results import METRICS, MeasuredData, Result, Scores, Spread


def spread(mean, std=None):
    return Spread(mean, std)


def scores(average, std=None):
    metrics = {name: spread(average, std) for name in METRICS} | {
        "balanced_error": spread(1 - average, std)
    }
    return Scores({"thresholds": metrics, "thirds": metrics | {"few": spread(0.111)}}, [average])


def result(average=0.5, *, counts=(500, 300, 50, 5), std=None, seeds=1, names=("ce", "la")):
    return Result(
        protocol="longtail",
        version=3,
        summary="a line",
        settings={"seeds": seeds},
        class_names=[str(c) for c in counts],
        group_counts=list(counts),
        train_counts=list(counts),
        test_counts=[10] * len(counts),
        scores={name: scores(average, std) for name in names},
        tightness={},
    )


def test_the_head_says_protocol_version_groups_counts_and_ddof():
    head = "\n".join(comparison_table([("run", [result()])]).splitlines()[:4])
    for part in (
        "longtail v3: a line",
        "pretraining images, 500 to 5 per class",
        "many over 100, medium 20 to 100, few under 20",
        "2 many, 1 medium, 1 few",
        "ddof 1",
        "percent",
    ):
        assert part in head


def test_runs_to_compare_stand_under_each_other():
    table = comparison_table([("simclr", [result(0.5)]), ("gh", [result(0.625)])])
    rows = [line.split() for line in table.splitlines()[5:]]
    assert rows == [
        ["ce", "simclr", "50.0", "50.0", "50.0", "50.0", "50.0", "50.0"],
        ["gh", "62.5", "62.5", "62.5", "62.5", "62.5", "37.5"],
        ["la", "simclr", "50.0", "50.0", "50.0", "50.0", "50.0", "50.0"],
        ["gh", "62.5", "62.5", "62.5", "62.5", "62.5", "37.5"],
    ]


def test_the_spread_over_seeds_is_shown_where_there_are_several():
    table = comparison_table([("run", [result(std=0.0123, seeds=3)])])
    assert "50.0±1.2" in table
    assert "mean±std of 3 seeds" in table
    assert "±" not in comparison_table([("run", [result()])])


def test_thresholds_that_leave_a_group_empty_give_way_to_thirds_and_are_named():
    table = comparison_table([("run", [result(counts=(500, 300, 200, 50))])])
    assert "groups by thirds" in table
    assert "thresholds leave few empty" in table
    assert "11.1" in table
    assert "thirds" not in comparison_table([("run", [result()])])


@pytest.mark.parametrize("convention", ["thresholds", "thirds"])
def test_a_gap_in_the_labels_is_no_class(convention):
    entry = result(counts=(0, 500, 300, 0, 50, 5, 0))
    entry = replace(entry, test_counts=[0, 10, 10, 0, 10, 10, 10])
    head = comparison_table([("run", [entry])], convention=convention)
    assert "2 many, 1 medium, 2 few" in head or "2 many, 2 medium, 1 few" in head
    assert "pretraining images, 500 to 0 per class" in head
    entry = replace(entry, test_counts=[0, 10, 10, 0, 10, 10, 0])
    head = comparison_table([("run", [entry])], convention=convention)
    assert "2 many, 1 medium, 1 few" in head
    assert "pretraining images, 500 to 5 per class" in head


def test_thresholds_that_only_a_gap_would_fill_give_way_to_thirds():
    entry = replace(result(counts=(0, 500, 300, 50)), test_counts=[0, 10, 10, 10])
    assert "thresholds leave few empty" in comparison_table([("run", [entry])])


def test_thirds_can_be_asked_for():
    table = comparison_table([("run", [result()])], convention="thirds")
    assert "groups by thirds" in table
    assert "leave" not in table


def test_what_is_not_known_is_a_dash():
    blank = result(names=("ce",))
    metrics = blank.scores["ce"].metrics["thresholds"] | {"few": None, "std": None}
    blank = replace(blank, scores={"ce": Scores({"thresholds": metrics, "thirds": {}}, [])})
    assert comparison_table([("run", [blank])]).splitlines()[-1].split()[4:6] == ["-", "-"]


@pytest.mark.parametrize("convention", ["thresholds", "thirds"])
@pytest.mark.parametrize("classes", [4, 1000])
def test_no_line_is_longer_than_100_characters_and_long_names_stay_apart(convention, classes):
    counts = tuple(range(5, 5 + classes))
    names = [f"cifar100-lt-imbalance-100-simclr-harmonized-by-{end}" for end in ("faiss", "none")]
    entry = result(0.12345, counts=counts, std=0.1234, seeds=3, names=("la-posthoc", "elm"))
    table = comparison_table([(name, [entry]) for name in names], convention=convention)
    assert max(map(len, table.splitlines())) <= 100
    assert "faiss" in table
    assert "none" in table


def test_numbers_that_do_not_compare_get_sections_of_their_own():
    old = result()
    runs = [
        ("a", [old]),
        ("b", [replace(old, version=4)]),
        ("c", [replace(old, group_counts=[900, 300, 50, 5])]),
    ]
    assert len(comparison_table(runs).split("\n\n")) == 3


def test_another_test_prior_gets_a_section_of_its_own_and_is_named():
    def expecting(prior):
        return replace(result(), settings={"seeds": 1, "test_prior": prior})

    runs = [(str(place), [expecting(p)]) for place, p in enumerate(["objective", "balanced"])]
    first, second = comparison_table(runs).split("\n\n")
    assert "predictions for" not in first
    assert "predictions for equal class shares" in second
    assert "given class shares" in comparison_table([("run", [expecting([0.5, 0.2, 0.2, 0.1])])])


def test_what_was_chosen_stands_under_the_table_in_lines_of_100_characters():
    chosen = {
        f"objective-{number}": {"tau": None if number else 2.0, "lr": 0.01, "weight_decay": 5e-4}
        for number in range(22)
    }
    settings = {"seeds": 1, "folds": 4, "tau": [1.0, 2.0], "lr": [0.1, 0.01], "weight_decay": 5e-4}
    entry = replace(result(), chosen=chosen, settings=settings)
    table = comparison_table([("run", [entry]), ("other", [result()])])
    below = table.split("run, chosen by 4 folds of the training images: ")[1]
    expected = ["objective-0 tau 2, lr 0.01"] + [f"objective-{n} lr 0.01" for n in range(1, 22)]
    assert " ".join(below.split()) == "; ".join(expected)
    assert "other, chosen" not in table
    assert max(map(len, table.splitlines())) <= 100
    assert all(line.startswith("  objective-") for line in below.splitlines()[1:])


def test_no_results_make_an_empty_table():
    assert comparison_table([]) == ""


def measured(root, fingerprint):
    data = MeasuredData("folder", root, None, fingerprint * 32, "f" * 32, 40, 855)
    return replace(result(), data=data)


def test_test_sets_get_headers_of_their_own_that_name_them():
    table = comparison_table([("a", [measured("/one", "1")]), ("b", [measured("/two", "2")])])
    first, second = table.split("\n\n")
    assert first.splitlines()[1] == "test set: 40 images of /one (11111111)"
    assert second.splitlines()[1] == "test set: 40 images of /two (22222222)"
    assert "  b  " not in first
    assert "  a  " not in second


def test_a_result_that_names_no_test_set_is_not_mixed_with_one_that_does():
    table = comparison_table([("a", [measured("/one", "1")]), ("b", [result()])])
    assert table.count("longtail v3") == 2
    assert "test set: not recorded" in table


def test_one_test_set_is_not_named_and_may_lie_in_two_places():
    table = comparison_table([("a", [measured("/one", "1")]), ("b", [measured("/moved", "1")])])
    assert table.count("longtail v3") == 1
    assert "test set" not in table


def test_another_protocol_on_another_test_set_names_none():
    knn = replace(measured("/two", "2"), protocol="knn")
    assert "test set" not in comparison_table([("a", [measured("/one", "1"), knn])])


def test_a_long_path_of_a_test_set_is_wrapped():
    runs = [("a", [measured("/deep folder" * 20, "1")]), ("b", [measured("/two", "2")])]
    assert max(map(len, comparison_table(runs).splitlines())) <= 100
