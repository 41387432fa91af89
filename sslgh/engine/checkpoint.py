"""Checkpoints: everything that decides the next step, written whole or not at all."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sslgh.engine.sharding import cut_like, cut_optimiser_state, whole

FORMAT = 2
MODULE, MEMORY, OPTIMISER, PROGRESS = (
    "module.safetensors",
    "memory.safetensors",
    "optimiser.pt",
    "progress.json",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and the way out."""


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        epoch: The epoch of the next step.
        step: Steps of that epoch already taken.
        total: Steps taken since the start.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0


def save_checkpoint(
    directory: Path,
    progress: Progress,
    *,
    module: nn.Module,
    memory: nn.Module | None,
    optimiser: torch.optim.Optimizer,
    keep: int,
    writes: bool = True,
) -> Path:
    """Write ``directory/step-N`` and drop all but the latest ``keep``.

    One process ``writes``; the others need to call it only where FSDP has cut the weights.

    No random state is in it: order, augmentation and the generator of a step are functions of
    the seed and the step.
    """
    target = directory / f"step-{progress.total:09d}"
    weights, state = _tensors(module), whole(optimiser.state_dict())
    if not writes:
        return target
    temporary = directory / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(weights, temporary / MODULE)
    if memory is not None:
        save_file(_tensors(memory), temporary / MEMORY)
    torch.save(state, temporary / OPTIMISER)
    (temporary / PROGRESS).write_text(json.dumps({"format": FORMAT, **progress._asdict()}))
    for file in temporary.iterdir():
        _flush(file)
    replaced = directory / f".{target.name}.old"
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    _flush(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: whole(value.detach()).cpu().contiguous()
        for name, value in module.state_dict().items()
    }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(directory: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / PROGRESS).is_file())


def load_checkpoint(
    path: Path, *, module: nn.Module, memory: nn.Module | None, optimiser: torch.optim.Optimizer
) -> Progress:
    """Restore the modules and the optimiser in place; every process reads the same files.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: If a file is damaged, of another format, or of another model.
    """
    try:
        progress = json.loads((path / PROGRESS).read_text())
        written = progress.pop("format")
        if written != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {written}, this sslgh goes on from {FORMAT}; choose another "
                "run_dir, or the sslgh that wrote it"
            )
        _load(module, load_file(path / MODULE), path / MODULE)
        if memory is not None:
            _load(memory, load_file(path / MEMORY), path / MEMORY)
        optimiser.load_state_dict(cut_optimiser_state(_read_optimiser(path / OPTIMISER), optimiser))
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged ({reason}); delete it to go on from the checkpoint before it"
        ) from None
    return Progress(**progress)


def _read_optimiser(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(f"{path.name}: {str(error).splitlines()[0]}") from None
    return state


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    examples = module.state_dict()
    cut = {
        name: cut_like(value, examples[name]) if name in examples else value
        for name, value in tensors.items()
    }
    try:
        module.load_state_dict(cut)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(
            f"{path} belongs to another model ({reason}); choose another run_dir"
        ) from None
