"""Where a run may be stopped, what it then leaves, and what a failure beside it changes."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from sslgh.data import DataError
from sslgh.engine import run as run_module
from sslgh.engine import trainer
from sslgh.engine.checkpoint_manager import CheckpointWriter
from sslgh.engine.exit_codes import BAD_INPUT, NotFiniteError, Stopped, run_command
from sslgh.engine.launch import StopRequest, init_accelerator
from sslgh.engine.pretraining import pretrain


def state(directory) -> str:
    return json.loads((directory / "status.json").read_text())["state"]


def same(first, second) -> bool:
    one, other = (load_file(d / "backbone.safetensors") for d in (first, second))
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("resample", [None, "hierarchical"])
def test_a_run_stopped_in_the_last_step_of_an_epoch_goes_on_to_the_same_bits(
    tiny, tmp_path, stopped_at, resample
) -> None:
    words = ["train.checkpoint_every=6"]
    words += [] if resample is None else [f"harmonize.resample={resample}", "data.workers=0"]
    unbroken = pretrain(tiny(*words, f"run_dir={tmp_path}/whole", gh=True), init_accelerator())
    recipe = tiny(*words, gh=True)
    with stopped_at(8):
        pretrain(recipe, init_accelerator())
    assert same(pretrain(recipe, init_accelerator()), unbroken)


def test_a_signal_in_the_first_step_is_answered_at_once_and_stops_after_it(
    tiny, stopped_at, capfd
) -> None:
    with stopped_at(1):
        pretrain(tiny(), init_accelerator())
    printed = capfd.readouterr().err
    assert printed.count("sslgh: stopping after this step; a second Ctrl-C ends at once") == 1


def test_only_the_first_rank_answers_a_signal(monkeypatch, capfd) -> None:
    monkeypatch.setenv("RANK", "1")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked
    assert capfd.readouterr().err == ""


def test_a_signal_is_obeyed_where_nothing_can_be_printed(monkeypatch) -> None:
    def closed(descriptor, text):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "write", closed)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked


def test_a_resumed_run_looks_for_its_files_first(tiny, monkeypatch, stopped_at) -> None:
    with stopped_at(5):
        pretrain(tiny(), init_accelerator())

    def gone(images, root):
        raise DataError(f"{len(images)} images of the run are missing")

    monkeypatch.setattr(run_module, "check_files", gone)
    with pytest.raises(DataError, match="118 images of the run are missing"):
        pretrain(tiny(), init_accelerator())


def test_a_step_beyond_an_epoch_that_became_shorter_is_the_end_of_that_epoch(
    tiny, tmp_path, monkeypatch, stopped_at
) -> None:
    unbroken = pretrain(tiny(f"run_dir={tmp_path}/whole"), init_accelerator())
    recipe, original = tiny(), run_module.read_progress
    with stopped_at(8):
        pretrain(recipe, init_accelerator())

    def of_fewer_ranks(path):
        progress, environment = original(path)
        return progress._replace(step_in_epoch=5, global_step=10), environment

    monkeypatch.setattr(run_module, "read_progress", of_fewer_ranks)
    assert same(pretrain(recipe, init_accelerator()), unbroken)


def test_a_signal_after_the_last_step_stops_before_anything_else_begins(
    tiny, tmp_path, monkeypatch
) -> None:
    unbroken = pretrain(tiny(f"run_dir={tmp_path}/whole"), init_accelerator())
    original = CheckpointWriter.finish

    def signalled(writer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(writer)

    monkeypatch.setattr(CheckpointWriter, "finish", signalled)
    recipe = tiny()
    with pytest.raises(Stopped, match="after the last step; run the same command to finish"):
        pretrain(recipe, init_accelerator())
    assert not (recipe.directory / "backbone.safetensors").exists()
    monkeypatch.undo()
    assert same(pretrain(recipe, init_accelerator()), unbroken)


def test_steps_skipped_in_a_row_are_counted_over_a_stop(tiny, monkeypatch, stopped_at) -> None:
    original, asked = trainer.non_finite_reason, iter(range(1, 1000))

    def faulty(*arguments):
        return "nan" if next(asked) > 2 else original(*arguments)

    monkeypatch.setattr(trainer, "non_finite_reason", faulty)
    recipe = tiny("train.not_finite=skip")
    with stopped_at(8):
        pretrain(recipe, init_accelerator())
    with pytest.raises(NotFiniteError, match=r"nan in step 12 .* as in the 9 steps before it"):
        pretrain(recipe, init_accelerator())


def test_what_is_kept_every_few_epochs_is_also_written_then(tiny) -> None:
    recipe = tiny(
        "train.checkpoint_every=10", "train.keep_every=3", "train.epochs=7", "train.keep_last=1"
    )
    directory = pretrain(recipe, init_accelerator())
    kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert [int(name[5:]) // 4 for name in kept] == [3, 6, 7]


def test_a_failure_after_a_finished_training_undoes_nothing(tiny, capsys) -> None:
    directory = pretrain(tiny(), init_accelerator())
    assert (
        run_command(lambda: pretrain(tiny("train.processes=2"), init_accelerator()), tiny())
        == BAD_INPUT
    )
    assert state(directory) == "done"
    for checkpoint in (directory / "checkpoints").iterdir():
        checkpoint.rename(directory / f"{checkpoint.name}-elsewhere")
    pretrain(tiny(), init_accelerator())
    assert "done already" in capsys.readouterr().out


def test_a_run_without_its_checkpoints_says_that_it_begins_anew(tiny, stopped_at, capsys) -> None:
    recipe = tiny()
    with stopped_at(5):
        pretrain(recipe, init_accelerator())
    for checkpoint in (recipe.directory / "checkpoints").iterdir():
        checkpoint.rename(recipe.directory / f"{checkpoint.name}-elsewhere")
    pretrain(recipe, init_accelerator())
    assert (
        "checkpoints holds no checkpoint: the run starts from the beginning"
        in capsys.readouterr().out
    )
