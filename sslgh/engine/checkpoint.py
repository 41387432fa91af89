"""Checkpoints: all state that the next step depends on, written whole or not at all."""

import hashlib
import json
import os
import pickle
import shutil
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import recursively_apply
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sslgh.distributed import gather_full
from sslgh.engine.fsdp import shard_like
from sslgh.models.serialization import save_tensors

FORMAT = 4
MODULE, AUX_STATE, OPTIMIZER, PROGRESS, MANIFEST = (
    "module.safetensors",
    "aux_state.safetensors",
    "optimizer.pt",
    "progress.json",
    "manifest.json",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class DamagedError(OSError):
    """A checkpoint whose files differ from its manifest."""


class Progress(NamedTuple):
    """Position of a run.

    Attributes:
        epoch: Epoch of the next step.
        step_in_epoch: Steps of that epoch already taken.
        global_step: Steps taken since the start.
        skipped_in_a_row: Number of steps that were skipped directly before the next one.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    skipped_in_a_row: int = 0


class RunEnvironment(NamedTuple):
    """Conditions other than the recipe that change a run's numbers.

    Attributes:
        processes: Number of processes.
        threads: CPU threads per process.
        images: Fingerprint of the training set's names and labels.
        precision: Precision of the network, fp32 or bf16; None in checkpoints that do not hold it.
    """

    processes: int
    threads: int
    images: str
    precision: str | None = None


class Snapshot(NamedTuple):
    """Copy of a run's state on the CPU, which training no longer changes.

    Attributes:
        progress: Position of the run.
        environment: Processes, threads and images of the run.
        module: Weights and buffers by name.
        aux_state: Weights and buffers of the auxiliary state; None without any.
        optimizer: State dictionary of the optimizer with parameter names as keys.
    """

    progress: Progress
    environment: RunEnvironment
    module: dict[str, Tensor]
    aux_state: dict[str, Tensor] | None
    optimizer: dict[str, Any]


def copy_to_cpu(
    progress: Progress,
    environment: RunEnvironment,
    module: nn.Module,
    aux_state: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> Snapshot:
    """Copy all state of a checkpoint. Collective with FSDP: call it on every rank.

    There is no random state: order, views and the generator are functions of the seed and the step.
    """
    extras = None if aux_state is None else _copied(aux_state.state_dict())
    state = _copied(_by_name(optimizer, module))
    return Snapshot(progress, environment, _copied(module.state_dict()), extras, state)


def _copied(tensors: Any) -> Any:
    """Copy of dictionaries and lists of tensors on the CPU."""
    return recursively_apply(
        lambda tensor: gather_full(tensor.detach()).to("cpu", copy=True), tensors
    )


def _parameter_names(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[list[str]]:
    """Names of the parameters of each group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def _by_name(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """State dictionary with names in place of positions."""
    # `torch.distributed.checkpoint.state_dict` takes a step of zeros if there is no state: AdamW counts it.
    groups = _parameter_names(optimizer, module)
    names, state = list(chain.from_iterable(groups)), optimizer.state_dict()
    pairs = zip(state["param_groups"], groups, strict=True)
    return {
        "state": {names[position]: value for position, value in state["state"].items()},
        "param_groups": [group | {"params": params} for group, params in pairs],
    }


def write_checkpoint(directory: Path, snapshot: Snapshot) -> Path:
    """Write ``directory/step-N``: under another name, with a manifest, flushed, then renamed.

    Raises:
        OSError: If it cannot be written. Earlier checkpoints are still there.
    """
    target = directory / f"step-{snapshot.progress.global_step:09d}"
    temporary = directory / f".{target.name}.tmp"
    # Not made here: if the folder is gone, so is its mount, and a new one would fill the disk below.
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
    save_tensors(snapshot.module, folder / MODULE)
    if snapshot.aux_state is not None:
        save_tensors(snapshot.aux_state, folder / AUX_STATE)
    with (folder / OPTIMIZER).open("wb") as file:
        torch.save(snapshot.optimizer, file)
    progress = {"format": FORMAT, **snapshot.progress._asdict(), **snapshot.environment._asdict()}
    (folder / PROGRESS).write_text(json.dumps(progress) + "\n")
    write_manifest(folder)
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _flush(path: Path) -> None:
    folder = path.is_dir()
    if folder and not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    # Windows flushes only what may be written.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_progress(path: Path) -> tuple[Progress, RunEnvironment]:
    """Position and environment of a checkpoint's run.

    Raises:
        CheckpointError: If it has another format.
        OSError, ValueError, KeyError, TypeError: If it is damaged.
    """
    held = json.loads((path / PROGRESS).read_text())
    written = held["format"]
    if written != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {written}, this sslgh resumes from {FORMAT}; choose another "
            "run_dir, or the sslgh that wrote it"
        )
    return (
        Progress(*(held[key] for key in Progress._fields)),
        RunEnvironment(**{key: held[key] for key in RunEnvironment._fields if key in held}),
    )


def load_checkpoint(
    path: Path, *, module: nn.Module, aux_state: nn.Module | None, optimizer: torch.optim.Optimizer
) -> Progress:
    """Restore the modules and the optimizer in place; every rank reads the same files.

    Returns:
        Position of the run.

    Raises:
        CheckpointError: If a file is damaged, of another format, or of another model.
    """
    try:
        progress, _ = read_progress(path)
        _load_module(module, path / MODULE)
        if aux_state is not None:
            _load_module(aux_state, path / AUX_STATE)
        _load_optimizer(optimizer, module, path / OPTIMIZER)
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged ({reason}); move it elsewhere to resume from the checkpoint before it"
        ) from None
    return progress


def _load_module(module: nn.Module, path: Path) -> None:
    tensors, live = load_file(path), module.state_dict()
    tensors |= {name: shard_like(tensors[name], live[name]) for name in tensors.keys() & live}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(
            f"{path} belongs to another model ({reason}); choose another run_dir"
        ) from None


def _load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, path: Path) -> None:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(f"{path.name}: {str(error).splitlines()[0]}") from None
    groups, parameters = _parameter_names(optimizer, module), dict(module.named_parameters())
    if [group["params"] for group in saved["param_groups"]] != groups:
        raise ValueError(f"{path.name} lists other parameters than the optimizer has")
    positions = {name: number for number, name in enumerate(chain.from_iterable(groups))}
    state = {
        positions[name]: {key: shard_like(value, parameters[name]) for key, value in values.items()}
        for name, values in saved["state"].items()
    }
    numbered = [
        group | {"params": [positions[name] for name in group["params"]]}
        for group in saved["param_groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: size (bytes) and SHA-256 of every other file of ``folder``."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    # With a hash of itself: one altered character in it must not go unseen.
    text = json.dumps(listed, sort_keys=True)
    held = {"files": listed, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    # No space and no line end: every byte counts.
    text = json.dumps(held, separators=(",", ":"))
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Compare the files of ``folder`` with its manifest.

    Raises:
        DamagedError: If one is missing, or has another size or other bytes; it is named.
    """
    listed = _read_manifest(folder / MANIFEST)
    missing = listed.keys() - {path.name for path in folder.iterdir()}
    if missing:
        raise DamagedError(f"{min(missing)} is missing")
    for name, expected in listed.items():
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(f"{name} has {size} bytes instead of {expected['bytes']}")
        if _digest(folder / name) != expected["sha256"]:
            raise DamagedError(f"{name} was altered")


def _read_manifest(path: Path) -> dict[str, dict[str, int | str]]:
    try:
        held = json.loads(path.read_bytes())
        listed: dict[str, dict[str, int | str]] = held["files"]
        text = json.dumps(listed, sort_keys=True)
        if held["sha256"] != hashlib.sha256(text.encode()).hexdigest():
            raise DamagedError(f"{path.name} was altered")
    except FileNotFoundError:
        raise DamagedError(f"{path.name} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path.name} cannot be read ({type(error).__name__})") from None
    return listed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
