"""Real processes: signals, crashes, a batch system."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslgh.engine.checkpoint_manager import last_whole_checkpoint
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import read_status
from sslgh.recipe import load_recipe

SLURM = Path(__file__).parents[1] / "docs" / "examples" / "slurm.sh"
LONG = {"epochs": 400, "batch_size": 32, "checkpoint_every": 1, "log_every": 1000}


@pytest.fixture
def recipe(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    """A run that takes longer than a test."""
    file = tmp_path / "recipe.yaml"
    gh = tiny_settings["harmonize"] | {"refresh_every": 50}
    file.write_text(yaml.safe_dump(tiny_settings | {"harmonize": gh, "train": LONG}))
    return file


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{folder}:{os.environ['PATH']}"
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until(ready: Callable[[], object], child: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert child.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step-*"))


def test_a_job_of_a_batch_system_saves_queues_itself_again_and_goes_on_elsewhere(
    tmp_path, recipe, capsys
) -> None:
    run = tmp_path / "run"
    requeue = tmp_path / "scontrol"
    requeue.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/queued\n')
    requeue.chmod(0o755)
    job = start(
        tmp_path, str(SLURM), str(run), str(recipe), SLURM_GPUS_ON_NODE="2", SLURM_JOB_ID="17"
    )
    wait_until(lambda: checkpoints(run), job, tmp_path)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(200) == 0
    said = (tmp_path / "log").read_text()
    assert read_status(run)["state"] == "stopped", said
    assert (tmp_path / "queued").read_text() == "requeue 17\n"
    assert "Traceback" not in said.split("run the same command to resume")[0]
    # The rest of a run of two processes on one: as many epochs, not the same bits, and said so.
    epochs = int(read_status(run)["message"].split()[3].rstrip(";")) // 4 + 2
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("epochs: 400", f"epochs: {epochs}"))
    pretrain(load_recipe(run / "recipe.yaml"), init_accelerator())
    assert read_status(run)["state"] == "done"
    assert "is from 2 processes and the run resumes with 1" in capsys.readouterr().out


SCRIPT = """
import os, sys, time
from sslgh.cli import main
from sslgh.engine import trainer

original = trainer.train_step
def train_step(stage, batches, step, stop):
    if step.global_step == 6 and os.environ.get("RANK", "1") == "1":
        {line}
    return original(stage, batches, step, stop)
trainer.train_step = train_step
main(["pretrain", *sys.argv[1:]])
"""
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start_with(line: str, folder: Path, recipe: Path, *launcher: str) -> subprocess.Popen[str]:
    """A run in whose sixth step, in one process, something happens."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(line=line))
    words = (str(script), str(recipe), f"run_dir={folder}/run")
    return start(folder, sys.executable, *launcher, *words)


def test_a_fault_of_one_process_ends_all_and_its_sentence_is_shown_and_kept(
    tmp_path, recipe
) -> None:
    child = start_with('raise ValueError("only this process sees it")', tmp_path, recipe, *TWO)
    assert child.wait(200) != 0  # a hang fails here
    said = (tmp_path / "log").read_text()
    assert "sslgh (process 1): only this process sees it" in said
    status = read_status(tmp_path / "run")
    assert (status["state"], status["message"]) == ("failed", "only this process sees it")


def test_a_process_that_is_killed_ends_all(tmp_path, recipe) -> None:
    child = start_with("os.kill(os.getpid(), 9)", tmp_path, recipe, *TWO)
    assert child.wait(200) != 0
    assert "Signal 9" in (tmp_path / "log").read_text()


def test_a_second_interrupt_ends_the_run_at_once_and_harms_no_checkpoint(tmp_path, recipe) -> None:
    waiting = f"open({str(tmp_path / 'there')!r}, 'w').close(); time.sleep(50)"
    child = start_with(waiting, tmp_path, recipe)
    wait_until((tmp_path / "there").exists, child, tmp_path)
    child.send_signal(signal.SIGINT)
    answer = "stopping after this step"
    wait_until(lambda: answer in (tmp_path / "log").read_text(), child, tmp_path)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 1
    said = (tmp_path / "log").read_text()
    assert "sslgh: interrupted; run the same command to resume from the last checkpoint" in said
    assert "Traceback" not in said
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert last_whole_checkpoint(tmp_path / "run" / "checkpoints")[1] == []
