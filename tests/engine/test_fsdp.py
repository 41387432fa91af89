import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel

from sslgh.distributed import local_shard, unshard_
from sslgh.engine.checkpoint import (
    Progress,
    RunEnvironment,
    copy_to_cpu,
    load_checkpoint,
    write_checkpoint,
)
from sslgh.engine.fsdp import FSDPError, prepare_for_fsdp
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.methods.byol import BYOL
from sslgh.methods.sdclr import SDCLR
from sslgh.models import build_backbone, load_backbone

REPOSITORY = Path(__file__).parents[2]
LAUNCH_FILE = REPOSITORY / "recipes" / "accelerate" / "fsdp.yaml"
# A ViT of 0.4 M parameters in six blocks, with timm's class for the blocks of every ViT.
VIT = (
    "model.backbone=timm:test_vit",
    "data.size=32",
    "model.width=1",
    "optim.clip=1",
    "seed=1",  # of another one rounding moves a sample to another vertex, and the prior with it
    "harmonize={vertices: 10, warmup_epochs: 1, ramp_epochs: 1, population: prototypes}",
)


def launch(config: Path, *words: object) -> str:
    """What two processes of a launch file say; they must end well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", "2", "-m", "sslgh.pretrain", *map(str, words)]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def losses(directory: Path) -> list[float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [line["loss"] for line in found if line["kind"] == "train"]


def close(one: Path, two: Path) -> None:
    # Biases that keys or batch norms cancel have no gradient but rounding, which Adam takes for one.
    first, second = (
        {name: value for name, value in load_file(file).items() if value.ndim > 1}
        for file in (one, two)
    )
    assert len(first) > 25
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("lars", marks=pytest.mark.slow)])
def test_a_run_cut_over_two_processes_is_the_run_of_one_and_goes_on_from_its_checkpoints(
    tiny, recipe_file, tmp_path, optimizer
) -> None:
    words = (*VIT, f"optim.name={optimizer}", "optim.lr=0.001", "train.keep_last=9")
    whole = pretrain(tiny(*words, f"run_dir={tmp_path}/whole"), init_accelerator())
    said = launch(LAUNCH_FILE, recipe_file, *words, f"run_dir={tmp_path}/cut")
    assert "2 processes on 1 machine(s) (FSDP)" in said
    cut = tmp_path / "cut"
    assert len(losses(cut)) == 16
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-4)
    close(cut / "backbone.safetensors", whole / "backbone.safetensors")
    backbone, _ = load_backbone(cut)
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
    last = "checkpoints/step-000000016/"
    close(cut / last / "module.safetensors", whole / last / "module.safetensors")
    states = [torch.load(run / last / "optimizer.pt", weights_only=True) for run in (cut, whole)]
    torch.testing.assert_close(*(state["state"] for state in states), rtol=1e-2, atol=1e-4)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    # The whole run forgets its second half, and goes on cut over two processes; and the other way.
    for run in (whole, cut):
        for path in ("backbone.safetensors", "status.json", last, last.replace("16", "12")):
            target = run / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    again = launch(LAUNCH_FILE, recipe_file, *words, f"run_dir={whole}")
    assert "resuming from epoch 2, step 8" in again
    pretrain(tiny(*words, f"run_dir={cut}"), init_accelerator())
    assert losses(whole) == pytest.approx(losses(cut), rel=1e-4)
    close(whole / "backbone.safetensors", cut / "backbone.safetensors")


def test_the_first_fsdp_is_refused_and_not_ignored(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(FSDPError, match="fsdp_version 1 is not supported; use --config_file"):
        init_accelerator()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def cut_network() -> tuple[nn.Module, torch.optim.Optimizer]:
    cut = fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))
    return cut, torch.optim.AdamW(cut.parameters(), lr=0.1)


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    net(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save_and_load(folder: str) -> tuple[list[bool], dict[str, torch.Tensor]]:
    """Whether parts are parts, and the weights after a step, a checkpoint and another step; in a worker."""
    cut, optimizer = cut_network()
    step(cut, optimizer)
    directory, options = Path(folder), {"aux_state": None}
    setting = RunEnvironment(2, 1, "")
    snapshot = copy_to_cpu(Progress(0, 1, 1), setting, module=cut, optimizer=optimizer, **options)
    path = directory / "step-000000001"
    if torch.distributed.get_rank() == 0:
        write_checkpoint(directory, snapshot)
    torch.distributed.barrier()
    again, fresh = cut_network()
    load_checkpoint(path, module=again, optimizer=fresh, **options)
    found = [local_shard(p).numel() < p.numel() for p in again.parameters()]
    moment = fresh.state_dict()["state"][0]["exp_avg"]
    found.append(local_shard(moment).numel() < moment.numel())
    step(again, fresh)
    unshard_(again)
    found += [local_shard(p) is p for p in again.parameters()]
    return found, {name: value.detach() for name, value in again.state_dict().items()}


def test_a_cut_module_is_saved_whole_and_comes_back_cut(two_processes, tmp_path) -> None:
    answers = two_processes(save_and_load, str(tmp_path))
    plain = network()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    step(plain, optimizer)
    saved = load_file(tmp_path / "step-000000001" / "module.safetensors")
    torch.testing.assert_close(saved, dict(plain.state_dict()))
    state = torch.load(tmp_path / "step-000000001" / "optimizer.pt", weights_only=True)
    names = [name for name, _ in plain.named_parameters()]
    expected = {names[i]: values for i, values in optimizer.state_dict()["state"].items()}
    torch.testing.assert_close(state["state"], expected)
    step(plain, optimizer)
    assert len(answers) == 2
    for found, weights in answers:
        assert all(found)
        assert len(found) == 6 + 1 + 6
        torch.testing.assert_close(weights, dict(plain.state_dict()))


def test_what_cannot_be_cut_is_refused_in_one_sentence() -> None:
    backbone = build_backbone("resnet18", width=0.125)
    projector = BYOL.projector_spec.build(backbone, hidden=32, out=16)
    with pytest.raises(FSDPError, match="FSDP cannot train BYOL with weights that only follow"):
        prepare_for_fsdp(BYOL(backbone, projector), None)
    with pytest.raises(FSDPError, match="FSDP cannot train SDCLR, whose second branch reads"):
        prepare_for_fsdp(SDCLR(backbone, projector), None)
    average = nn.ModuleList([AveragedModel(nn.Linear(2, 2))])
    with pytest.raises(FSDPError, match=r"set finetune\.ema: null"):
        prepare_for_fsdp(nn.Linear(2, 2), average)


def test_the_parameters_become_contiguous_and_stay_the_optimizers() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = network.weight
    prepare_for_fsdp(network, None)
    assert network.weight is before
    assert network.weight.is_contiguous()
