"""Precision of a run: ``train.precision: auto`` is decided once, from the device, and kept when it resumes."""

import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import yaml
from accelerate import Accelerator

from sslgh.engine.launch import run_on_main
from sslgh.engine.run_dir import took_a_step
from sslgh.recipe import Recipe, RecipeError
from sslgh.recipe.run_recipe import RECIPE

Precision = Literal["fp32", "bf16"]


def with_precision(recipe: Recipe, accelerator: Accelerator) -> Recipe:
    """The recipe with ``fp32`` or ``bf16`` in place of ``auto``. Collective: call it on every rank.

    Raises:
        RecipeError: If it is bf16, which the device cannot compute.
    """
    precision, device = recipe.train.precision, accelerator.device
    if precision == "auto":
        precision, note = run_on_main(partial(_decide, recipe.directory, device), accelerator)
        accelerator.print(note)
    if precision == "bf16" and not computes_bf16(device):
        raise RecipeError(
            f"train.precision is bf16, which {device.type} does not compute here; resume the run on a device "
            "like the one that it began on, or set train.precision: fp32 for a new run"
        )
    train = recipe.train.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"train": train})


def _decide(directory: Path, device: torch.device) -> tuple[Precision, str]:
    """The precision of the run in a directory, else the faster one of the device, and a line about it."""
    faster: Precision = "bf16" if has_fast_bf16(device) else "fp32"
    held = _held_precision(directory)
    if held is None:
        return faster, f"train.precision: auto takes {faster}, the faster one on this {device.type}"
    note = "" if held == faster else f", though {faster} is faster on this {device.type}"
    return held, f"train.precision: auto keeps {held}, which the run began with{note}"


def _held_precision(directory: Path) -> Precision | None:
    """The precision that the run in a directory began with; None without a run that took a step."""
    if not took_a_step(directory):
        return None
    try:
        held = yaml.safe_load((directory / RECIPE).read_text(encoding="utf-8"))["train"][
            "precision"
        ]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return held if held in ("fp32", "bf16") else None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32: on GPUs that do not emulate it, and on CPUs with AMX.

    With the instructions of ``avx512_bf16`` alone it is slower: 162 images/s against 226 (ResNet-18 of a
    quarter width, one core).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and has_amx()


def has_amx() -> bool:
    """Whether the CPU multiplies bf16 in tiles (AMX)."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so perhaps gone one day
    return bool(known()) if known is not None else "amx_bf16" in cpu_flags()


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Flags of the CPU as Linux names them; none where there is no such file."""
    text = file.read_text() if file.is_file() else ""
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return frozenset(word for line in lines for word in line.split())


def computes_bf16(device: torch.device) -> bool:
    """Whether autocast gives bf16 on a device; on an old macOS it warns and computes in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.autocast(device.type, torch.bfloat16):
                one = torch.ones(1, 1, device=device)
                return (one @ one).dtype == torch.bfloat16
        except RuntimeError:
            return False
