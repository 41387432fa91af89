import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from sslgh.engine.exit_codes import BAD_INPUT, run_command
from sslgh.engine.run_dir import write_status
from sslgh.engine.run_lock import BusyError, hold

HOLDER = """
import sys, pathlib
from sslgh.engine.run_lock import hold
assert hold(pathlib.Path(sys.argv[1])) is not None
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


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path, holder) -> None:
    with pytest.raises(
        BusyError, match=rf"is being trained in by process {holder.pid} on .*; wait"
    ):
        hold(tmp_path, patience=0)
    holder.kill()
    holder.wait()
    os.close(hold(tmp_path, patience=5))  # a kill frees it


def test_one_that_is_about_to_end_is_waited_for(tmp_path, holder) -> None:
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    os.close(hold(tmp_path, patience=30))
    killer.wait()


def _sleep_for_ever(started) -> None:
    started.set()
    multiprocessing.Event().wait()


def test_a_loader_worker_that_outlives_a_killed_run_holds_nothing(tmp_path) -> None:
    lock = hold(tmp_path)
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
    assert hold(tmp_path / "gone") is None


def test_one_who_is_refused_leaves_the_status_of_the_other(tiny, capsys) -> None:
    recipe = tiny()
    write_status(recipe.directory, "running")

    def refused() -> None:
        raise BusyError("somebody trains there")

    assert run_command(refused, recipe) == BAD_INPUT
    assert json.loads((recipe.directory / "status.json").read_text())["state"] == "running"
    assert "somebody trains there" in capsys.readouterr().err
