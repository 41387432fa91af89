"""The doctor sees a fault where there is one, and says what to do."""

import re
import subprocess
import sys

import pytest

from sslgh.cli import main
from sslgh.data import training_set
from sslgh.doctor import software, storage, training_time
from sslgh.doctor.check_result import CheckResult, format_result
from sslgh.doctor.machine import (
    cpu_precision,
    faiss_against_device,
    gpu_precision,
    torch_against_device,
    world,
)
from sslgh.doctor.run_checks import run_checks
from sslgh.engine import memory

GPU = "OPTIMIZE AVX2 GPU "
GB = 10**9


def test_a_package_that_does_not_import_is_a_fault_with_its_remedy() -> None:
    faults = {"torchvision": "operator torchvision::nms does not exist"}
    versions, fault = software.packages(faults, {"torch": "2.8"})
    assert (versions.state, fault.state) == ("ok", "FAIL")
    assert "torch 2.8" in versions.found
    assert "torchvision::nms" in fault.found
    assert "pip install --upgrade torch torchvision" in fault.remedy
    assert software.unusable([fault.subject])
    assert not software.unusable(["faiss", "disk", ""])


def test_packages_that_break_while_importing_are_distinguished_from_missing_ones(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "broken_pair.py").write_text("raise RuntimeError('operator nms\\nis missing')")
    monkeypatch.syspath_prepend(tmp_path)
    found = software.import_faults(["broken_pair", "no_such_package_here", "json"])
    assert found["broken_pair"] == "operator nms"
    assert "no_such_package_here" in found["no_such_package_here"]
    assert set(found) == {"broken_pair", "no_such_package_here"}


@pytest.mark.parametrize(
    ("names", "state", "remedy"),
    [
        (["faiss-gpu"], "ok", ""),
        (["faiss-gpu", "faiss-cpu"], "FAIL", "pip uninstall faiss-cpu faiss-gpu"),
        ([], "FAIL", "pip install faiss-gpu"),
    ],
)
def test_one_package_of_faiss_is_wanted(names, state, remedy) -> None:
    finding = software.faiss_packages(names)
    assert finding.state == state
    assert remedy in finding.remedy


def test_different_openmp_runtimes_are_warned_of_and_copies_of_one_are_not() -> None:
    torch_and_faiss = [
        ("libgomp", "/x/site-packages/torch/lib/libgomp.so.1"),
        ("libgomp", "/x/site-packages/faiss_gpu.libs/libgomp.so.1"),
    ]
    assert software.openmp(torch_and_faiss).state == "ok"
    assert "2 copies" in software.openmp(torch_and_faiss).found
    mixed = software.openmp([*torch_and_faiss, ("libiomp", "/conda/lib/libiomp5.so")])
    assert mixed.state == "warn"
    assert "libgomp and libiomp" in mixed.found
    assert "pip" in mixed.remedy


@pytest.mark.parametrize(
    ("environment", "threads", "state", "remedy"),
    [
        ({}, 8, "ok", ""),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 2, "ok", ""),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 8, "warn", "OMP_NUM_THREADS=2"),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "1"}, 8, "ok", ""),
        ({"MASTER_PORT": "29500"}, 1, "FAIL", "torchrun"),
    ],
)
def test_the_world_is_judged_by_its_threads_and_its_launcher(
    environment, threads, state, remedy
) -> None:
    finding = world(environment, threads=threads, cores=8)
    assert finding.state == state
    assert remedy in finding.remedy


def test_bf16_without_hardware_matters_where_it_is_asked_for() -> None:
    assert cpu_precision(amx=True, precision="bf16").state == "ok"
    assert cpu_precision(amx=True, precision="auto").found.endswith("auto takes bf16")
    assert cpu_precision(amx=False, precision="auto").state == "ok"
    assert cpu_precision(amx=False, precision="fp32").found.endswith("auto takes fp32")
    assert cpu_precision(amx=False, precision="bf16") == CheckResult(
        "warn",
        "precision",
        "the CPU has no AMX and computes bf16 slower than fp32, train.precision: auto takes fp32",
        "set train.precision: auto",
    )
    assert gpu_precision("T4", (7, 5), "bf16").state == "warn"
    assert gpu_precision("T4", (7, 5), "fp32").state == "ok"
    assert gpu_precision("T4", (7, 5), "auto").found.endswith("auto takes fp32")
    assert gpu_precision("H200", (9, 0), "bf16").state == "ok"
    assert gpu_precision("H200", (9, 0), "auto").found.endswith("auto takes bf16")


@pytest.mark.parametrize(
    ("architectures", "capability", "state"),
    [
        (["sm_80", "sm_90"], (9, 0), "ok"),
        (["sm_80"], (8, 9), "ok"),  # code runs on later GPUs of the same major number
        (["sm_86"], (8, 0), "FAIL"),
        (["sm_80"], (9, 0), "FAIL"),
        (["sm_80", "compute_80"], (9, 0), "ok"),
        (["sm_90", "sm_100", "sm_120"], (12, 0), "ok"),
        (["sm_90"], (7, 0), "FAIL"),
    ],
)
def test_torch_must_have_code_for_the_gpu(architectures, capability, state) -> None:
    finding = torch_against_device(architectures, capability)
    assert finding.state == state
    assert bool(finding.remedy) == (state == "FAIL")


@pytest.mark.parametrize(
    ("options", "capability", "package", "visible", "state", "remedy"),
    [
        (GPU, (9, 0), "faiss-gpu", 1, "ok", ""),
        (GPU, (9, 0), "faiss-gpu-cu12", 1, "FAIL", "pip uninstall faiss-gpu-cu12"),
        (GPU, (8, 6), "faiss-gpu-cu12", 1, "ok", ""),
        (GPU, (10, 0), "faiss-gpu", 1, "ok", ""),  # compiled on the spot
        (GPU, (6, 1), "faiss-gpu", 1, "FAIL", "pip install faiss-gpu"),
        (GPU, (9, 0), "faiss-gpu", 0, "warn", "driver"),
        ("OPTIMIZE AVX2", (9, 0), "faiss-cpu", 0, "warn", "pip uninstall faiss-cpu"),
        ("OPTIMIZE AVX2", None, "faiss-cpu", 0, "ok", ""),
        (GPU, (9, 0), "FAISS from elsewhere", 1, "ok", ""),
    ],
)
def test_faiss_must_have_code_for_the_gpu(
    options, capability, package, visible, state, remedy
) -> None:
    finding = faiss_against_device(options, capability, package, visible)
    assert finding.state == state
    assert remedy in finding.remedy


def test_shared_memory_must_hold_the_batches_of_the_workers() -> None:
    full = storage.shared_memory(64 * 10**6, workers=8, batch_bytes=10**7)
    assert full.state == "FAIL"
    assert "set data.workers: 3" in full.remedy
    assert "--shm-size=1g" in full.remedy
    assert storage.shared_memory(64 * 10**6, workers=0, batch_bytes=10**7).state == "warn"
    assert storage.shared_memory(8 * GB, workers=8, batch_bytes=10**7).state == "ok"


def test_the_disk_must_hold_the_checkpoints() -> None:
    assert storage.disk(GB, checkpoint=GB, kept=3).state == "FAIL"
    assert "run_dir" in storage.disk(GB, checkpoint=GB, kept=3).remedy
    assert storage.disk(4 * GB, checkpoint=GB, kept=3).state == "warn"
    assert storage.disk(40 * GB, checkpoint=GB, kept=3).state == "ok"


def test_checkpoints_for_good_and_the_one_being_written_are_counted(tiny) -> None:
    assert storage.kept_checkpoints(tiny("train.keep_last=2", "train.epochs=20")) == 3
    assert storage.kept_checkpoints(tiny("train.keep_every=5", "train.epochs=20")) == 7


def test_the_run_directory_must_be_a_folder_to_write_to(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert storage.folder(tmp_path / "file" / "run").state == "FAIL"
    assert storage.folder(tmp_path / "file").remedy == "choose another run_dir"
    assert storage.folder(tmp_path / "a" / "b").state == "ok"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_more_workers_than_cores_are_warned_of() -> None:
    assert storage.loader_speed(100.0, workers=8, cores=2).remedy.endswith("data.workers: 2")
    assert storage.loader_speed(100.0, workers=2, cores=2).state == "ok"


def test_a_line_is_one_line_whatever_was_found() -> None:
    assert format_result(CheckResult("ok", "x", "a\nb\x1b[0m")) == r"ok    x: a\nb\x1b[0m"


def test_this_machine_can_run_a_tiny_recipe(tiny, monkeypatch) -> None:
    monkeypatch.setattr(storage, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(training_time, "TIMED_SECONDS", 0.1)
    findings = {finding.subject: finding for finding in run_checks(tiny(gh=True))}
    assert {"world", "precision", "FAISS", "run directory", "loader"} <= findings.keys()
    assert {"memory", "time", "disk"} <= findings.keys()
    assert re.fullmatch(r"4 epochs: about [\d.]+ s here", findings["time"].found)
    assert [f for f in findings.values() if f.state == "FAIL"] == []
    assert "checkpoints of" in findings["disk"].found


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_a_run_that_memory_cannot_hold_is_a_fault_with_the_batch_that_fits(
    tiny, monkeypatch
) -> None:
    monkeypatch.setattr(storage, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 5 * 10**6)
    recipe = tiny("train.batch_size=118")
    findings = {finding.subject: finding for finding in run_checks(recipe)}
    assert findings["memory"].state == "FAIL"
    assert "train.batch_size 118 needs about" in findings["memory"].found
    assert "time" not in findings


def test_a_step_that_takes_long_is_timed_by_a_smaller_batch(tiny, monkeypatch) -> None:
    timed = []

    def steps(stage, *_, **__) -> float:
        timed.append(stage.recipe.train.batch_size)
        return 0.1 * timed[-1]  # 0.1 s per image

    monkeypatch.setattr(training_time, "_seconds_per_step", steps)
    recipe = tiny("train.batch_size=96")
    found = training_time.seconds_per_image(recipe, training_set(recipe.data))
    assert found == pytest.approx(0.1)
    assert timed == [8, 8, 20, 20]


def test_the_command_exits_0_1_or_2(recipe_file, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(training_time, "TIMED_SECONDS", 0.1)
    assert call("doctor", recipe_file) == 0
    assert "disk: " in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert call("doctor", recipe_file, "--run-dir", tmp_path / "file") == 1
    told = capsys.readouterr().out
    assert (
        f"FAIL  run directory: {tmp_path / 'file'} is not a folder; choose another run_dir" in told
    )
    assert call("doctor", recipe_file, "train.epochs=x") == 2
    assert "train.epochs: expected a whole number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_doctor_speaks_where_torchvision_is_broken(tmp_path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sslgh.cli import main; main(['doctor'])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "FAIL  torchvision: cannot be imported (operator nms does not exist)" in ended.stdout
    assert "Traceback" not in ended.stderr
