import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from sslgh.engine.checkpoint import CheckpointError
from sslgh.engine.launch import init_accelerator
from sslgh.engine.precision import cpu_flags, has_amx, has_fast_bf16, with_precision
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import check_directory, write_status
from sslgh.recipe import RecipeError, load_recipe
from sslgh.recipe.named import recipe_files

AUTO = "train.precision=auto"


@pytest.fixture
def amx(monkeypatch):
    """``amx(True)``: this CPU multiplies bf16 in tiles."""
    return lambda has: monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has)


def test_a_cpu_takes_bf16_for_amx_alone(amx) -> None:
    amx(True)
    assert has_fast_bf16(torch.device("cpu"))
    amx(False)
    assert not has_fast_bf16(torch.device("cpu"))


def test_where_torch_does_not_say_the_flags_of_the_cpu_do(monkeypatch, tmp_path) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    for flags, expected in (("avx2 avx512_bf16", False), ("amx_tile amx_bf16", True)):
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags : fpu {flags}\nbugs: none\n")
        monkeypatch.setattr(cpu_flags, "__defaults__", (tmp_path / "cpuinfo",))
        assert has_amx() is expected
    monkeypatch.setattr(cpu_flags, "__defaults__", (tmp_path / "nothing",))
    assert not has_amx()  # no Linux


@pytest.mark.parametrize("emulated", [True, False])
def test_a_gpu_takes_bf16_unless_it_emulates_it(monkeypatch, emulated) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_fast_bf16(torch.device("cuda")) is not emulated
    assert not has_fast_bf16(torch.device("mps"))


def resume_last_epoch(directory) -> None:
    """Make a finished run one that was killed after its first epoch."""
    shutil.rmtree(max((directory / "checkpoints").glob("step-*")))
    write_status(directory, "running")


def run_files(directory):
    """Where a run says its precision, and its weights."""
    progress = max((directory / "checkpoints").glob("step-*")) / "progress.json"
    texts = [directory / "environment.json", directory / "backbone.json", progress]
    found = [json.loads(path.read_text())["precision"] for path in texts]
    found.append(yaml.safe_load((directory / "recipe.yaml").read_text())["train"]["precision"])
    return found, (directory / "backbone.safetensors").read_bytes()


def test_a_run_keeps_the_precision_that_auto_took_and_says_so_everywhere(
    amx, tiny, capsys, tmp_path
) -> None:
    recipe = tiny(AUTO, "train.epochs=2")
    amx(True)
    pretrain(recipe, init_accelerator())
    assert capsys.readouterr().out.count("auto takes bf16, the faster one on this cpu") == 1
    found, weights = run_files(recipe.directory)
    assert found == ["bf16"] * 4
    explicit = tiny("train.precision=bf16", "train.epochs=2", f"run_dir={tmp_path / 'explicit'}")
    pretrain(explicit, init_accelerator())
    assert run_files(explicit.directory) == (found, weights)

    amx(False)
    resume_last_epoch(recipe.directory)
    capsys.readouterr()
    pretrain(recipe, init_accelerator())
    assert (
        "auto keeps bf16, which the run began with, though fp32 is faster on this cpu"
        in capsys.readouterr().out
    )
    assert run_files(recipe.directory) == (found, weights)


def test_without_amx_auto_is_float32(amx, tiny, tmp_path) -> None:
    amx(False)
    recipes = [tiny(AUTO, "train.epochs=1"), tiny("train.epochs=1", f"run_dir={tmp_path / 'fp32'}")]
    for recipe in recipes:
        pretrain(recipe, init_accelerator())
    auto, fp32 = (run_files(recipe.directory) for recipe in recipes)
    assert auto == fp32
    assert auto[0] == ["fp32"] * 4


def test_another_precision_than_that_of_the_run_is_refused(amx, tiny) -> None:
    amx(False)
    recipe = tiny(AUTO, "train.epochs=2")
    pretrain(recipe, init_accelerator())
    resume_last_epoch(recipe.directory)
    bf16 = tiny("train.precision=bf16", "train.epochs=2")
    with pytest.raises(RecipeError, match=r"train\.precision is 'fp32' there and 'bf16' here"):
        check_directory(bf16)
    file = recipe.directory / "recipe.yaml"  # as if by hand
    file.write_text(file.read_text().replace("precision: fp32", "precision: bf16"))
    with pytest.raises(CheckpointError, match=r"is of a run in fp32; set train\.precision: fp32"):
        pretrain(bf16, init_accelerator())


def test_bf16_is_refused_where_the_device_does_not_compute_it(tiny) -> None:
    elsewhere = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(RecipeError, match=r"bf16, which mps does not compute here; resume the run"):
        with_precision(tiny("train.precision=bf16"), elsewhere)
    assert with_precision(tiny(), elsewhere).train.precision == "fp32"


def test_small_and_folder_recipes_take_auto_and_those_of_papers_say_theirs() -> None:
    taken = {True: 0, False: 0}
    for path in recipe_files():
        # LIFT trains in mixed precision where the device computes it.
        small = path.stem.startswith(("small-", "lift")) or path.parent.name == "folder"
        taken[small] += 1
        assert (load_recipe(path).train.precision == "auto") is small, path
    assert taken[True] >= 22
    assert taken[False] >= 20
