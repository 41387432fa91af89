"""The script for a GPU, on the CPU with tiny settings: pieces go on from their small files alone."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from sslgh.studies.plan import load_study
from sslgh.studies.records import read_records

PATH = Path(__file__).parents[2] / "scripts" / "gpu_study.py"


@pytest.fixture(scope="module")
def gpu_study():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pieces_complete_a_study_through_small_files_alone(
    gpu_study, study_settings, study_file, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(gpu_study, "PART", 200_000)
    study_settings["blocks"] = study_settings["blocks"][:1]
    file, state, pieces = study_file(study_settings), tmp_path / "state", 0
    words = [
        str(file),
        "--state",
        str(state),
        "--work",
        str(tmp_path / "work"),
        "--minutes",
        "0.01",
    ]
    while (code := gpu_study.main(words)) == 75:
        shutil.rmtree(tmp_path / "work")  # the next piece begins on a bare machine
        pieces += 1
        assert pieces < 30
    assert code == 0
    assert pieces >= 1
    assert max(part.stat().st_size for part in state.glob("part-*")) <= 200_000
    study = load_study(file)
    records = read_records(study, tmp_path / "work" / "results")
    assert len({record.warmup for record in records.values()}) == 1
    assert len(records) == 2
    assert len(list((state / "results").glob("*.json"))) == 2


def test_packing_loses_nothing_but_half_of_the_momentum(gpu_study, finished, tmp_path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "work" / "runs")
    shutil.copytree(finished / "tiny", tmp_path / "work" / "results")
    line = gpu_study.pack(tmp_path / "work", tmp_path, most=2**26)
    assert line.startswith("4 results")
    gpu_study.unpack(tmp_path, tmp_path / "again")
    compared = 0
    for path in (tmp_path / "again").rglob("*"):
        before = tmp_path / "work" / path.relative_to(tmp_path / "again")
        if path.is_dir() or path.name == "manifest.json":
            continue
        compared += 1
        if path.name != "optimizer.pt":
            assert path.read_bytes() == before.read_bytes()
            continue
        old, new = (torch.load(each, weights_only=True)["state"] for each in (before, path))
        for name, values in old.items():
            momentum = values["momentum_buffer"]
            assert torch.equal(new[name]["momentum_buffer"], momentum.bfloat16().float())
    assert compared >= 10


def test_what_has_no_room_is_left_out_arms_before_warmups(gpu_study, tmp_path) -> None:
    for seed, run in enumerate(("warmup", "A0")):
        folder = tmp_path / "work" / "runs" / "block" / run / "checkpoints" / "step-000000001"
        folder.mkdir(parents=True)
        draws = torch.Generator().manual_seed(seed)
        content = torch.randint(256, (50_000,), generator=draws, dtype=torch.uint8)
        (folder / "module.safetensors").write_bytes(bytes(content.tolist()))
    line = gpu_study.pack(tmp_path / "work", tmp_path / "state", most=60_000)
    assert line.endswith("; no room for A0")
    assert list((tmp_path / "state").glob("part-*"))


def test_a_device_is_compared_with_the_cpu_kernel_by_kernel(gpu_study) -> None:
    found = gpu_study.compare(torch.device("cpu"))
    assert len(found) == 5
    assert all(each == {"error": 0.0, "right": True} for each in found.values())


def test_a_kernel_that_differs_from_the_cpu_is_wrong(gpu_study, monkeypatch) -> None:
    results = iter([torch.ones(3), torch.tensor([1.0, 1.0, 1.5])])
    kernels = [("k", lambda device: [next(results)], 1e-3)]
    monkeypatch.setattr(gpu_study, "_kernels", lambda draws: kernels)
    found = gpu_study.compare(torch.device("cpu"))
    assert found == {"k": {"error": 0.5, "right": False}}


@pytest.mark.gpu
def test_cuda_is_right(gpu_study) -> None:
    found = gpu_study.compare(torch.device("cuda"))
    assert all(each["right"] for each in found.values()), found
