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

from sslgh.engine.fsdp import cut_optimizer_state, gather_full, shard_like
from sslgh.engine.manifest import write_manifest

FORMAT = 4
MODULE, AUX_STATE, OPTIMIZER, PROGRESS = (
    "module.safetensors",
    "aux_state.safetensors",
    "optimizer.pt",
    "progress.json",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and the way out."""


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        epoch: The epoch of the next step.
        step_in_epoch: Steps of that epoch already taken.
        global_step: Steps taken since the start.
        skipped_in_a_row: The last of them in a row that were skipped.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    skipped_in_a_row: int = 0


class RunEnvironment(NamedTuple):
    """What a run's numbers depend on beside its recipe.

    Attributes:
        processes: Their number.
        threads: Of the CPU, each process's.
        images: Fingerprint of the training set's names and labels.
    """

    processes: int
    threads: int
    images: str


class Snapshot(NamedTuple):
    """A copy of a run on the CPU, which training no longer touches.

    Attributes:
        progress: Where the run stood.
        setting: In which it ran.
        module: Weights and buffers by name.
        aux_state: The same of what stands beside the module; None where nothing does.
        optimizer: Its state dictionary.
    """

    progress: Progress
    setting: RunEnvironment
    module: dict[str, Tensor]
    aux_state: dict[str, Tensor] | None
    optimizer: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"step-{self.progress.global_step:09d}"


def copy_to_cpu(
    progress: Progress,
    setting: RunEnvironment,
    *,
    module: nn.Module,
    aux_state: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> Snapshot:
    """Copy what a checkpoint holds. Collective: call it on every rank where FSDP has cut the weights.

    No random state is in it: order, augmentation and the generator of a step are functions of the
    seed and the step.
    """
    beside = None if aux_state is None else _tensors(aux_state)
    state = _copied(gather_full(optimizer.state_dict()))
    return Snapshot(progress, setting, _tensors(module), beside, state)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: _copied(gather_full(value)).contiguous() for name, value in state.items()}


def _copied(value: Any) -> Any:
    """The same with every tensor copied to the CPU, of a tensor or of dictionaries and lists of them."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_copied(held) for held in value]
    return value


def write_checkpoint(directory: Path, snapshot: Snapshot) -> Path:
    """Write ``directory/step-N``: under another name, with a manifest, flushed, then renamed.

    Args:
        directory: The folder of the checkpoints. It is not made here: where it has gone, so has the
            mount it was on, and a new one would fill the disk below.
        snapshot: What is written.

    Raises:
        OSError: If that fails. The checkpoints that were there are still there.
    """
    target = directory / snapshot.name
    temporary = directory / f".{target.name}.tmp"
    if not directory.is_dir():
        raise FileNotFoundError(2, "its folder has gone", str(directory))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _write_files(temporary, snapshot)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room
        if isinstance(error, OSError):
            raise
        raise OSError(str(error).splitlines()[0]) from None
    replaced = directory / f".{target.name}.old"
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    _flush(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    save_file(snapshot.module, folder / MODULE)
    if snapshot.aux_state is not None:
        save_file(snapshot.aux_state, folder / AUX_STATE)
    with (folder / OPTIMIZER).open("wb") as file:
        torch.save(snapshot.optimizer, file)
    progress = {"format": FORMAT, **snapshot.progress._asdict(), **snapshot.setting._asdict()}
    (folder / PROGRESS).write_text(json.dumps(progress) + "\n")
    write_manifest(folder)
    for file_path in folder.iterdir():
        _flush(file_path)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_progress(path: Path) -> tuple[Progress, RunEnvironment]:
    """Where the run of a checkpoint stood, and in which setting.

    Raises:
        CheckpointError: If it is of another format.
        OSError, ValueError, KeyError, TypeError: If it is damaged.
    """
    held = json.loads((path / PROGRESS).read_text())
    written = held["format"]
    if written != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {written}, this sslgh goes on from {FORMAT}; choose another "
            "run_dir, or the sslgh that wrote it"
        )
    return (
        Progress(*(held[key] for key in Progress._fields)),
        RunEnvironment(*(held[key] for key in RunEnvironment._fields)),
    )


def load_checkpoint(
    path: Path, *, module: nn.Module, aux_state: nn.Module | None, optimizer: torch.optim.Optimizer
) -> Progress:
    """Restore the modules and the optimizer in place; every process reads the same files.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: If a file is damaged, of another format, or of another model.
    """
    try:
        progress, _ = read_progress(path)
        _load(module, load_file(path / MODULE), path / MODULE)
        if aux_state is not None:
            _load(aux_state, load_file(path / AUX_STATE), path / AUX_STATE)
        optimizer.load_state_dict(cut_optimizer_state(_read_optimizer(path / OPTIMIZER), optimizer))
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged ({reason}); delete it to go on from the checkpoint before it"
        ) from None
    return progress


def _read_optimizer(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(f"{path.name}: {str(error).splitlines()[0]}") from None
    return state


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    examples = module.state_dict()
    cut = {
        name: shard_like(value, examples[name]) if name in examples else value
        for name, value in tensors.items()
    }
    try:
        module.load_state_dict(cut)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(
            f"{path} belongs to another model ({reason}); choose another run_dir"
        ) from None
