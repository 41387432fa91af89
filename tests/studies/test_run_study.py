"""A study runs to its end whatever interrupts it, and needs nothing but its JSON files on another machine."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from sslgh.cli import main
from sslgh.engine.exit_codes import NotFiniteError, Stopped
from sslgh.engine.launch import StopRequest
from sslgh.recipe import RecipeError
from sslgh.studies.plan import load_study
from sslgh.studies.records import read_records, write_record
from sslgh.studies.run_study import Places, StudyRun, chosen_blocks, commit, time_limit

HOLDER = """
import pathlib, sys
from sslgh.engine.run_dir import acquire_lock
assert acquire_lock(pathlib.Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


def call(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def numbers(study, folder) -> dict:
    """All of the results that a repetition on this machine must give again."""
    return {
        cell: (record.warmup, record.metrics, record.diagnostics["effective_rank"])
        for cell, record in read_records(study, folder).items()
    }


def moved(finished, tmp_path):
    """The study on another machine, to which only its file and its JSON files were copied."""
    shutil.copy(finished / "tiny.yaml", tmp_path)
    shutil.copytree(finished / "tiny", tmp_path / "tiny")
    study = load_study(tmp_path / "tiny.yaml")
    return study, Places(tmp_path / "tiny", tmp_path / "runs")


def test_every_cell_has_a_result_and_arms_of_a_block_share_a_warmup(finished) -> None:
    study = load_study(finished / "tiny.yaml")
    records = read_records(study, finished / "tiny")
    assert len(records) == 4
    first, second = study.blocks
    digests = {
        name: {r.warmup for (b, _), r in records.items() if b == name} for name, _ in records
    }
    assert [len(digests[block.name]) for block in (first, second)] == [1, 1]
    assert digests[first.name] != digests[second.name]
    assert records[first.name, "gh"].metrics != records[first.name, "plain"].metrics
    assert records[first.name, "gh"].diagnostics["gh_share"] > 0
    assert records[first.name, "plain"].diagnostics["gh_share"] is None
    for record in records.values():
        assert (record.precision, record.device, record.threads) == ("fp32", "cpu", 1)
        assert record.versions["torch"]
        assert record.seconds["training"] > 0
    assert not list((finished / "runs").rglob("features"))


def test_a_study_that_is_interrupted_again_and_again_gives_the_same_numbers(
    finished, tmp_path, capsys
) -> None:
    file, stops = tmp_path / "tiny.yaml", 0
    shutil.copy(finished / "tiny.yaml", file)
    while (code := call("study", file, "--runs", tmp_path / "runs", "--minutes", 0.02)) == 75:
        stops += 1
        assert stops < 60
        assert "sslgh: stopped" in capsys.readouterr().err
    assert code == 0
    assert stops >= 2
    study = load_study(file)
    assert numbers(study, tmp_path / "tiny") == numbers(study, finished / "tiny")
    assert "4 of 4 results" in capsys.readouterr().out


def test_a_complete_study_is_left_as_it_is_on_another_machine(finished, tmp_path, capsys) -> None:
    study, places = moved(finished, tmp_path)
    StudyRun(study, places, [], study.blocks).run()
    assert "warm-up" not in capsys.readouterr().err
    assert read_records(study, places.results) == read_records(study, finished / "tiny")


def test_an_incomplete_block_is_done_anew_on_another_machine_and_the_others_stay(
    finished, tmp_path, capsys
) -> None:
    study, places = moved(finished, tmp_path)
    first, second = study.blocks
    before = read_records(study, places.results)
    # Another machine's weights differ in the last bits.
    elsewhere = replace(before[second.name, "plain"], warmup="elsewhere", commit="old")
    write_record(places.results, elsewhere)
    (places.results / f"{second.name}-gh.json").unlink()
    StudyRun(study, places, [], study.blocks).run()
    log = capsys.readouterr().err
    assert log.count("warm-up") == 1
    assert f"block {first.name}" not in log
    after = read_records(study, places.results)
    assert after[first.name, "plain"] == before[first.name, "plain"]
    assert after[second.name, "plain"].warmup == after[second.name, "gh"].warmup != "elsewhere"
    assert after[second.name, "plain"].commit != "old"
    assert numbers(study, places.results) == numbers(study, finished / "tiny")


def test_results_that_fit_their_new_warmup_are_kept(finished, tmp_path, capsys) -> None:
    study, places = moved(finished, tmp_path)
    second = study.blocks[1]
    (places.results / f"{second.name}-gh.json").unlink()
    StudyRun(study, places, [], study.blocks).run()
    log = capsys.readouterr().err
    assert log.count("warm-up") == 1
    assert "arm gh" in log
    assert "arm plain" not in log


def test_blocks_of_other_processes_are_left_to_them(finished, tmp_path, capsys) -> None:
    study, places = moved(finished, tmp_path)
    first, second = study.blocks
    for block in study.blocks:
        (places.results / f"{block.name}-gh.json").unlink()
    locked = places.runs / first.name
    locked.mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(locked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(Stopped, match=f"other processes work on block {first.name}; all"):
            StudyRun(study, places, [], study.blocks).run()
    finally:
        other.kill()
        other.communicate()
    assert set(read_records(study, places.results)) == {
        (first.name, "plain"),
        (second.name, "plain"),
        (second.name, "gh"),
    }


def test_chosen_blocks_are_run_and_no_others(finished, tmp_path) -> None:
    study, places = moved(finished, tmp_path)
    for path in places.results.iterdir():
        path.unlink()
    mine = StudyRun(study, places, [], chosen_blocks(study, "1"))
    assert {block.name for _, block in mine.empty_cells()} == {study.blocks[1].name}


def test_an_arm_that_diverges_does_not_stop_the_others(
    study_settings, study_file, tmp_path
) -> None:
    study_settings["blocks"] = study_settings["blocks"][:1]
    plain, gh = study_settings["arms"]
    infinite = gh["settings"]["harmonize"] | {"weight": 1e38, "population": "prototypes"}
    study_settings["arms"] = [gh | {"settings": {"harmonize": infinite}}, plain]
    study = load_study(study_file(study_settings))
    places = Places(tmp_path / "tiny", tmp_path / "runs")
    with pytest.raises(NotFiniteError, match="arm gh of block order0-seed0: "):
        StudyRun(study, places, [], study.blocks).run()
    assert {arm for _, arm in read_records(study, places.results)} == {"plain"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metrics": ["longtail.la.few"]}, "needs the probe longtail, but recipe.probe has knn"),
        ({"blocks": [{"seed": 0}, {"seed": 0}]}, "the block seed0 is listed twice"),
        ({"name": "other"}, "is of study tiny, arm gh, block order0-seed0"),
    ],
)
def test_a_study_that_cannot_run_ends_with_2_and_a_sentence(
    change, sentence, finished, tmp_path, study_settings, capsys
) -> None:
    moved(finished, tmp_path)
    (tmp_path / "tiny.yaml").write_text(json.dumps(study_settings | change))
    assert call("study", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs") == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1


def test_words_of_the_command_line_are_checked(finished, tmp_path, capsys) -> None:
    file = finished / "tiny.yaml"
    for words, sentence in (
        ((file, file), "expected one file of a study, got 2"),
        ((file, "train.epochs=1"), "train.epochs decides what a study compares"),
        ((file, "--block", "2"), "--block 2: expected numbers from 0 to 1 with commas, got '2'"),
        ((file, "--block", "0,0"), "--block 0,0 names block order0-seed0 twice"),
        ((tmp_path / "none.yaml",), "none.yaml: no such"),
    ):
        assert call("study", *words, "--runs", tmp_path / "runs") == 2
        assert sentence in capsys.readouterr().err


def test_table_and_plot_need_no_recipe_that_still_exists(
    finished, tmp_path, study_settings, capsys
) -> None:
    study_settings["arms"][1]["settings"] = {"harmonize.deleted_key": 1}
    study_settings["recipe"]["model"]["gone"] = True
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(study_settings))
    study = load_study(file)
    for arm, block in study.cells():
        record = read_records(load_study(finished / "tiny.yaml"), finished / "tiny")
        old = record[block.name, arm.name]
        write_record(tmp_path / "tiny", replace(old, design=study.design_hash(arm, block)))
    assert call("study", file, "--table") == 0
    assert "| gh - plain | knn.knn.average | 2 |" in capsys.readouterr().out
    assert call("study", file, "--plot", tmp_path / "plot.svg") == 0
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    assert call("study", file, "--runs", tmp_path / "runs") == 2  # it cannot be run any more


def test_time_limit_sends_the_signal_to_stop() -> None:
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        with time_limit(0.001):
            time.sleep(0.5)
        with time_limit(10), time_limit(None):
            pass
        assert received == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_a_block_did_not_look_at_reaches_the_block_around_it() -> None:
    with StopRequest() as outer:
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
        assert outer.asked
    with StopRequest() as outer:
        with StopRequest():
            pass
        assert not outer.asked


def test_the_commit_is_that_of_the_repository() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("+changes")) >= 12


def test_blocks_are_chosen_by_number(finished) -> None:
    study = load_study(finished / "tiny.yaml")
    assert chosen_blocks(study, None) == list(study.blocks)
    assert chosen_blocks(study, "1,0") == [study.blocks[1], study.blocks[0]]
    with pytest.raises(RecipeError, match="got 'x'"):
        chosen_blocks(study, "x")


def test_a_record_is_plain_json(finished) -> None:
    for path in (finished / "tiny").glob("*.json"):
        assert path.stat().st_size < 4000
    study = load_study(finished / "tiny.yaml")
    for record in read_records(study, finished / "tiny").values():
        json.dumps(asdict(record), allow_nan=False)
