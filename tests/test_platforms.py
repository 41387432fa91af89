"""What needs no Linux: import, scan, doctor, training on one process, and workers that are no forks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

# The libraries are imported before the names go: on such a machine they have builds of their own.
ELSEWHERE = """
import multiprocessing, os, signal, sys, types

def take_away(module, *names):
    for name in names:
        delattr(module, name)

def end(*words):
    from sslgh.cli import main
    try:
        main(list(words))
    except SystemExit as ended:
        print("exit code", ended.code, flush=True)

if __name__ == "__main__":
    import accelerate, faiss, fcntl, lightly.models, lightly.loss, scipy.stats, sklearn.datasets
    import torch.utils.tensorboard, torchvision, torch.distributed.tensor
    lock = lambda file, mode, size: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, size)
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lock)
    sys.modules["fcntl"] = None
    take_away(os, "sched_getaffinity", "pread", "pwrite", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK")
    take_away(signal, "SIGUSR1")
    from sslgh.data import loader
    from sslgh.doctor import run_checks
    loader.SHARED_MEMORY = run_checks.SHARED_MEMORY = loader.Path("/nowhere")
    photos, recipe = sys.argv[1:]
    end("scan", photos, "--json")
    multiprocessing.set_start_method("spawn", force=True)
    end("pretrain", recipe)
    end("doctor", recipe)
else:
    take_away(os, "sched_getaffinity", "O_NONBLOCK")
"""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_scan_training_and_doctor_need_no_name_that_only_linux_has(
    photos, recipe_file, tmp_path
) -> None:
    (photos / "empty.png").write_bytes(b"")
    settings = yaml.safe_load(recipe_file.read_text())
    settings["data"] = {"source": "folder", "root": str(photos), "size": 8, "workers": 1}
    settings["train"] |= {"epochs": 1, "batch_size": 12}
    recipe_file.write_text(yaml.safe_dump(settings))
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)

    found = subprocess.run(
        [sys.executable, str(script), str(photos), str(recipe_file)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Traceback" not in found.stderr, found.stderr
    scan, training, doctor, rest = found.stdout.split("exit code ")
    record = json.loads(scan)
    assert (record["formats"], len(record["broken"])) == ({"PNG": 24}, 1)
    assert training.startswith("1\n")  # of the scan, for the empty file
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "done", found.stderr
    assert doctor.startswith("0\n")
    assert "ok    loader" in doctor
    assert rest in ("0\n", "1\n")
