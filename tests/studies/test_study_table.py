"""Tables and plots are made of the JSON files alone, and pair only what belongs together."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from sslgh.recipe import RecipeError
from sslgh.studies.paired_plot import study_plot
from sslgh.studies.plan import load_study
from sslgh.studies.records import ArmResult, read_records, write_record
from sslgh.studies.study_table import compare, outcomes, pair, study_table

CELLS = [(block, arm) for block in (0, 1) for arm in (0, 1)]


def record(study, block, arm, average, *, few=0.5, warmup="w") -> ArmResult:
    values = {"many": 0.9, "medium": None, "few": few, "average": average}
    return ArmResult(
        study=study.name,
        design=study.design_hash(study.arms[arm], study.blocks[block]),
        hypotheses=study.hypotheses_hash(),
        block=study.blocks[block].name,
        arm=study.arms[arm].name,
        warmup=f"{warmup}{block}",
        precision="fp32",
        device="cpu",
        threads=1,
        commit="abc",
        versions={"torch": "2"},
        seconds={"training": 10.0, "probing": 1.0},
        metrics={"knn": {"knn": {"thresholds": values}}},
        diagnostics={"gh_share": 0.5},
    )


@pytest.fixture
def study(study_file):
    return load_study(study_file())


@pytest.fixture
def records(study):
    averages = {(0, 0): 0.5, (0, 1): 0.53, (1, 0): 0.6, (1, 1): 0.61}
    made = [record(study, *cell, averages[cell]) for cell in CELLS]
    return {(each.block, each.arm): each for each in made}


def test_differences_are_points_within_blocks(study, records) -> None:
    found = pair(study, records, ("gh", "plain"), "knn.knn.average")
    assert found == {"order0-seed0": pytest.approx(3), "order1-seed3": pytest.approx(1)}
    assert compare(study, records, ("gh", "plain"), "knn.knn.medium") is None


@pytest.mark.parametrize("change", [{"warmup": "other"}, {"precision": "bf16"}])
def test_results_of_other_warmups_or_precision_are_not_paired(study, records, change) -> None:
    cell = ("order0-seed0", "gh")
    records[cell] = replace(records[cell], **change)
    assert list(pair(study, records, ("gh", "plain"), "knn.knn.average")) == ["order1-seed3"]
    if "warmup" in change:
        assert "block order0-seed0 has results of several warm-ups" in study_table(study, records)


def test_holm_waits_until_every_hypothesis_can_be_tested(study_settings, study_file) -> None:
    study_settings["arms"].append({"name": "late", "about": "later"})
    study_settings["hypotheses"].append({"arms": ["late", "plain"], "metric": "knn.knn.average"})
    study = load_study(study_file(study_settings))
    records = {
        (each.block, each.arm): each
        for each in (record(study, *cell, 0.5 + 0.1 * cell[1]) for cell in CELLS)
    }
    first, second = outcomes(study, records)
    assert first.difference.p == 0.5
    assert first.adjusted is second.difference is None
    late = [record(study, block, 2, 0.4) for block in (0, 1)]
    records |= {(each.block, each.arm): each for each in late}
    assert [each.adjusted for each in outcomes(study, records)] == [1.0, 1.0]


def test_the_table_shows_hypotheses_means_differences_and_conditions(study, records) -> None:
    table = study_table(study, records)
    assert "4 of 4 results (2 blocks, 2 arms); commit abc; device cpu; precision fp32" in table
    assert "| gh - plain | knn.knn.average | 2 | +2.00±1.00 | 2 of 2 | 0.500 | 0.500 |" in table
    assert "| plain | SimCLR | 2 | 55.0 | 50.0 |" in table
    assert "| gh | 2 | +2.00±1.00 (0.500) | +0.00±0.00 (1.000) |" in table
    assert "older than the hypotheses" not in table
    later = study.model_copy(update={"hypotheses": ()})
    assert "4 results are older than the hypotheses" in study_table(later, records)


def test_a_study_without_results_has_a_table(study) -> None:
    assert "0 of 4 results" in study_table(study, {})
    ElementTree.fromstring(study_plot(study, {}))


def test_the_plot_has_a_dot_per_block_and_one_for_the_mean(study, records) -> None:
    drawing = ElementTree.fromstring(study_plot(study, records))
    dots = [one for one in drawing.iter() if one.tag.endswith("circle")]
    blocks = [float(dot.get("cx")) for dot in dots if len(dot)]
    (mean,) = [float(dot.get("cx")) for dot in dots if not len(dot)]
    middle = next(float(one.get("x1")) for one in drawing.iter() if one.tag.endswith("line"))
    assert [x - middle for x in blocks] == pytest.approx([220, 220 / 3], abs=0.1)  # 3 points and 1
    assert mean - middle == pytest.approx(440 / 3, abs=0.1)
    titles = [one.text for one in drawing.iter() if one.tag.endswith("title")]
    assert titles == ["order0-seed0: +3.00", "order1-seed3: +1.00"]


def test_a_result_is_written_and_read_back(study, records, tmp_path) -> None:
    for each in records.values():
        write_record(tmp_path, each)
    assert read_records(study, tmp_path) == records
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 4000


FOREIGN = {
    "another study": ({"study": "other"}, "is of study other, arm gh, block order0-seed0"),
    "unknown arm": ({"arm": "A7"}, "is of study tiny, arm A7, block order0-seed0"),
    "other settings": ({"design": "0" * 16}, "is of other settings of this study"),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_result_of_another_study_is_refused_and_named(fault, study, records, tmp_path) -> None:
    change, sentence = FOREIGN[fault]
    write_record(tmp_path, replace(records["order0-seed0", "gh"], **change))
    with pytest.raises(RecipeError) as refused:
        read_records(study, tmp_path)
    assert sentence in str(refused.value)
    assert "move it away, or choose another --out" in str(refused.value)


def test_a_misplaced_or_broken_file_is_refused(study, records, tmp_path) -> None:
    write_record(tmp_path, records["order0-seed0", "gh"])
    (tmp_path / "order0-seed0-gh.json").rename(tmp_path / "copy.json")
    with pytest.raises(RecipeError, match=r"copy.json holds arm gh of block order0-seed0"):
        read_records(study, tmp_path)
    (tmp_path / "copy.json").write_text(json.dumps({"study": "tiny"}))
    with pytest.raises(RecipeError, match=r"copy.json is no result of a study"):
        read_records(study, tmp_path)
    (tmp_path / "copy.json").write_text("[1")
    with pytest.raises(RecipeError, match="no result of a study"):
        read_records(study, tmp_path)
