import json
import multiprocessing
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from sslgh.cli import main
from sslgh.engine import run_dir
from sslgh.engine.exit_codes import BAD_INPUT, run_command
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import (
    BusyError,
    OtherRunError,
    acquire_lock,
    check_directory,
    note_killed,
    open_directory,
    read_status,
    write_status,
)
from sslgh.recipe import RecipeError, recipe_text
from sslgh.recipe.run_recipe import run_settings, run_text


def take_a_step(recipe) -> None:
    """Leave what a run leaves that logged a step."""
    recipe.directory.mkdir(exist_ok=True)
    (recipe.directory / "recipe.yaml").write_text(run_text(recipe))
    (recipe.directory / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0}\n')


def test_an_empty_or_missing_directory_is_a_new_run(tiny) -> None:
    recipe = tiny()
    assert not check_directory(recipe)
    recipe.directory.mkdir()
    assert not check_directory(recipe)


def test_the_directory_of_the_same_recipe_is_gone_on_with(tiny) -> None:
    open_directory(tiny(), {"world": "1 process"})
    assert check_directory(tiny())
    assert check_directory(tiny("probe=[{protocol: knn}]", "train.log_every=7", "data.workers=2"))


@pytest.mark.parametrize(
    ("override", "named"),
    [("optim.lr=0.2", "optim.lr is 0.1 there and 0.2 here"), ("train.epochs=9", r"train\.epochs"),
     ("harmonize={vertices: 5}", "harmonize"), ("data.long_tail.imbalance=5", r"data\.long_tail\.imbalance")],
)  # fmt: skip
def test_the_directory_of_another_recipe_is_refused_with_the_key(tiny, override, named) -> None:
    take_a_step(tiny())
    with pytest.raises(OtherRunError, match=named):
        check_directory(tiny(override))


@pytest.mark.parametrize(
    "override",
    ["data.root=elsewhere", "data.test_root=later", "data.test_list=later.txt", "probe=[]"],
)
def test_places_and_test_sets_are_no_part_of_a_run_s_identity(tiny, override) -> None:
    listed = ("data.source=list", "data.list=train.txt")
    take_a_step(tiny(*listed))
    assert check_directory(tiny(*listed, override))


def test_a_run_that_is_to_be_longer_is_another_and_the_message_names_the_way(tiny) -> None:
    take_a_step(tiny())
    with pytest.raises(
        OtherRunError, match=r"holds a run of 4 epochs.*end it with train\.epochs=4"
    ):
        check_directory(tiny("train.epochs=9"))
    write_status(tiny().directory, "done")
    way = f"depend on that length: 9 epochs are another run; to train its weights further add model.init={tiny().directory} and another run_dir"
    with pytest.raises(OtherRunError, match=re.escape(way)):
        check_directory(tiny("train.epochs=9"))
    with pytest.raises(OtherRunError, match=r"train\.epochs is 4 there and 3 here"):
        check_directory(tiny("train.epochs=3"))


def test_a_directory_whose_run_never_took_a_step_is_taken_over(tiny, caplog) -> None:
    directory = tiny().directory
    os.close(open_directory(tiny(), {}))
    (directory / "metrics.jsonl").write_text('{"kind": "refresh", "step": 0, "epoch": 0}\n')
    (directory / "images.json").write_text("{}")
    other = tiny("optim.lr=0.2")
    assert not check_directory(other)
    os.close(open_directory(other, {}))
    assert "held another run that never took a step; this run takes it over" in caplog.text
    assert check_directory(other)
    assert not (directory / "images.json").exists()
    assert not (directory / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "work",
    [
        "checkpoints/step-000000004/manifest.json",
        "checkpoints/step-000000004.damaged/manifest.json",
        "checkpoints/.step-000000004.tmp/manifest.json",
        "backbone.safetensors",
    ],
)
def test_a_directory_with_work_of_another_run_is_not_taken_over(tiny, work) -> None:
    os.close(open_directory(tiny(), {}))
    path = tiny().directory / work
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(OtherRunError, match="holds another run"):
        check_directory(tiny("optim.lr=0.2"))


def test_a_directory_in_use_is_not_taken_over(tiny, monkeypatch) -> None:
    os.close(open_directory(tiny(), {}))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tiny().directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(acquire_lock, "__kwdefaults__", {"timeout": 0})
    with pytest.raises(BusyError):
        open_directory(tiny("optim.lr=0.2"), {})
    holder.kill()
    holder.communicate()
    assert check_directory(tiny())


def test_a_step_taken_before_the_lock_was_free_is_seen(tiny, monkeypatch) -> None:
    os.close(open_directory(tiny(), {}))

    def waits(directory):
        take_a_step(tiny())

    monkeypatch.setattr("sslgh.engine.run_dir.acquire_lock", waits)
    with pytest.raises(OtherRunError, match=r"optim\.lr"):
        open_directory(tiny("optim.lr=0.2"), {})


def test_the_recipe_of_a_run_has_absolute_paths(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny(
        "run_dir=here",
        "data.source=folder",
        "data.root=photos",
        "data.subset=rows",
        "model.init=base",
    )
    os.close(open_directory(recipe, {}))
    settings = yaml.safe_load((tmp_path / "here" / "recipe.yaml").read_text())
    assert settings["run_dir"] == str(tmp_path / "here")
    assert settings["data"]["root"] == str(tmp_path / "photos")
    assert settings["data"]["subset"] == str(tmp_path / "rows")
    assert settings["data"]["test_root"] is None
    assert settings["model"]["init"] == str(tmp_path / "base")
    assert check_directory(recipe)


def test_teachers_of_a_run_have_absolute_paths_or_their_names(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = run_settings(tiny("method={name: distill, teacher: runs/base}"))["method"]
    assert one["teacher"] == str(tmp_path / "runs/base")
    several = "method={name: distil, teachers: [base, timm:resnet10t], centroids: c.npy}"
    found = run_settings(tiny(several))["method"]
    assert found["teachers"] == [str(tmp_path / "base"), "timm:resnet10t"]
    assert found["centroids"] == str(tmp_path / "c.npy")


def test_a_run_of_a_version_that_kept_relative_paths_is_the_same_run(
    tiny, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny("run_dir=here", "data.subset=rows", "model.init=pretrained")
    recipe.directory.mkdir()
    (recipe.directory / "recipe.yaml").write_text(recipe_text(recipe))
    assert check_directory(recipe)


def test_a_run_begun_before_a_key_came_has_its_default(tiny) -> None:
    recipe = tiny("method=null", "finetune.objective=la")
    take_a_step(recipe)
    file = recipe.directory / "recipe.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["finetune"]["ema"], settings["train"]["accumulation"]
    file.write_text(yaml.safe_dump(settings))
    assert check_directory(recipe)
    other = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"ema": 0.9})})
    with pytest.raises(OtherRunError, match=r"finetune\.ema is None there and 0\.9 here"):
        check_directory(other)


def test_a_directory_with_foreign_files_is_refused_and_left_alone(tiny) -> None:
    recipe = tiny()
    recipe.directory.mkdir()
    (recipe.directory / "thesis.tex").write_text("precious")
    with pytest.raises(RecipeError, match=r"holds thesis\.tex but no run"):
        check_directory(recipe)
    assert [path.name for path in recipe.directory.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(tiny) -> None:
    recipe = tiny()
    recipe.directory.write_text("")
    with pytest.raises(RecipeError, match="is a file"):
        check_directory(recipe)


def test_the_directory_holds_the_resolved_recipe_and_the_versions(tiny) -> None:
    recipe = tiny()
    open_directory(recipe, {"world": "1 process"})
    resolved = yaml.safe_load((recipe.directory / "recipe.yaml").read_text())
    assert resolved["optim"]["momentum"] == 0.9
    environment = json.loads((recipe.directory / "environment.json").read_text())
    assert environment["world"] == "1 process"
    assert environment["versions"]["torch"]


def test_the_status_is_written_over_and_read_back(tiny) -> None:
    directory = tiny().directory
    assert read_status(directory) == {}
    write_status(directory, "running", epoch=3)
    write_status(directory, "stopped", "by a signal")
    assert read_status(directory)["state"] == "stopped"
    assert read_status(directory)["message"] == "by a signal"


HOLDER = """
import sys, pathlib
from sslgh.engine.run_dir import acquire_lock
assert acquire_lock(pathlib.Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path`` until it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_second_process_is_refused_and_the_message_names_the_first(tmp_path, holder) -> None:
    with pytest.raises(
        BusyError, match=rf"is being trained in by process {holder.pid} on .*; wait"
    ):
        acquire_lock(tmp_path, timeout=0)
    holder.kill()
    holder.wait()
    os.close(acquire_lock(tmp_path, timeout=5))  # a kill frees it


def test_one_that_is_about_to_end_is_waited_for(tmp_path, holder) -> None:
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    os.close(acquire_lock(tmp_path, timeout=30))
    killer.wait()


def _sleep_for_ever(started) -> None:
    started.set()
    multiprocessing.Event().wait()


def test_a_loader_worker_that_outlives_a_killed_run_holds_nothing(tmp_path) -> None:
    lock = acquire_lock(tmp_path)
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=_sleep_for_ever, args=(started,), daemon=True)
    worker.start()
    started.wait()
    os.close(lock)
    taker = subprocess.run(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    worker.kill()
    worker.join()
    assert taker.stdout == "held\n", taker.stderr


def test_a_folder_without_room_for_a_lock_is_trained_in_all_the_same(tmp_path) -> None:
    assert acquire_lock(tmp_path / "gone") is None


def test_a_refused_process_leaves_the_status_of_the_other(tiny, capsys) -> None:
    recipe = tiny()
    write_status(recipe.directory, "running")

    def refused() -> None:
        raise BusyError("somebody trains there")

    assert run_command(refused, recipe) == BAD_INPUT
    assert json.loads((recipe.directory / "status.json").read_text())["state"] == "running"
    assert "somebody trains there" in capsys.readouterr().err


def test_windows_locks_by_a_byte_that_is_not_read(monkeypatch, tmp_path) -> None:
    places = []

    def locking(file, mode, size):
        places.append(os.lseek(file, 0, os.SEEK_CUR))
        if len(places) > 1:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_dir, "fcntl", None)
    windows = SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    lock = acquire_lock(tmp_path)
    with pytest.raises(BusyError, match=rf"trained in by process {os.getpid()} on"):
        acquire_lock(tmp_path, timeout=0)
    os.close(lock)
    assert min(places) > 200  # the name of the holder stands before it


HOLD = """
import sys, time
from pathlib import Path
from sslgh.engine.run_dir import acquire_lock, write_status
lock = acquire_lock(Path(sys.argv[1]))
write_status(Path(sys.argv[1]), "running", epoch=3, step=40)
print("held", flush=True)
time.sleep(600)
"""


def test_a_run_whose_process_is_gone_was_killed_and_one_that_goes_on_is_running(tmp_path) -> None:
    assert note_killed(tmp_path) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert note_killed(tmp_path) is None
        assert read_status(tmp_path)["state"] == "running"
        holder.kill()
    expected = f"{tmp_path} was killed in epoch 3; run the same command to resume"
    assert note_killed(tmp_path) == expected
    assert read_status(tmp_path)["state"] == "failed"
    assert read_status(tmp_path)["message"] == "killed in epoch 3; run the same command to resume"
    assert note_killed(tmp_path) is None


def test_a_killed_run_is_not_probed_and_its_resume_says_so(tiny, recipe_file, capsys) -> None:
    recipe = tiny("train.epochs=1")
    take_a_step(recipe)
    write_status(recipe.directory, "running", epoch=0, step=1)
    with pytest.raises(SystemExit) as ended:
        main(["probe", str(recipe.directory), "probe=[{protocol: knn}]"])
    assert ended.value.code == BAD_INPUT
    assert "was killed in epoch 0; run the same command" in capsys.readouterr().err
    write_status(recipe.directory, "running", epoch=0, step=1)
    pretrain(recipe, init_accelerator())
    assert "the process before this one was killed" in capsys.readouterr().out
    assert read_status(recipe.directory)["state"] == "done"
