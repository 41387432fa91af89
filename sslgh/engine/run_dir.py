"""The run directory: its recipe, environment, status and lock."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from sslgh.recipe import Recipe, RecipeError, recipe_text

State = Literal["running", "done", "failed", "stopped"]

RECIPE, STATUS, LOCK = "recipe.yaml", "status.json", ".lock"
# Seconds to wait for the lock: a process that was asked to stop may still be saving.
LOCK_TIMEOUT = 10.0
# Settings that may differ when a run is resumed: they change no weight.
FREE = {
    ("run_dir",),
    ("probe",),
    ("data", "workers"),
    ("data", "download"),
    ("data", "broken_share"),
    ("train", "processes"),
    ("train", "checkpoint_every"),
    ("train", "keep_last"),
    ("train", "keep_every"),
    ("train", "not_finite"),
    ("train", "log_every"),
}
PACKAGES = (
    "sslgh",
    "torch",
    "torchvision",
    "accelerate",
    "lightly",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
)


class BusyError(RecipeError):
    """Another process trains in the run directory."""


def check_directory(recipe: Recipe) -> bool:
    """Whether the run directory holds a run of this recipe to resume.

    Raises:
        RecipeError: If it holds another run, or other files; nothing is changed.
    """
    directory = recipe.directory
    if directory.exists() and not directory.is_dir():
        raise RecipeError(f"run directory {directory} is a file; choose another run_dir")
    if (directory / RECIPE).is_file():
        _check_same_run(recipe, directory)
        return True
    if directory.exists():
        _check_no_other_files(directory)
    return False


def _check_no_other_files(directory: Path) -> None:
    foreign = [path.name for path in directory.iterdir() if not _is_left_over(path)]
    if foreign:
        raise RecipeError(
            f"run directory {directory} holds {min(foreign)} but no run; choose another run_dir"
        )


def _is_left_over(path: Path) -> bool:
    """Whether a run killed before it had written its recipe may have left this file."""
    if path.is_dir():
        return path.name == "checkpoints" and not any(path.iterdir())
    return path.name in (STATUS, LOCK) or path.suffix == ".tmp"


def _check_same_run(recipe: Recipe, directory: Path) -> None:
    try:
        old = yaml.safe_load((directory / RECIPE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        raise RecipeError(
            f"{directory / RECIPE} is damaged, so it is not known whose run this is; put back the recipe it began "
            "with, or choose another run_dir"
        ) from None
    new = yaml.safe_load(recipe_text(recipe))
    for path, before, after in _differences(old, new, ()):
        if path not in FREE:
            raise RecipeError(
                f"run directory {directory} holds another run: {'.'.join(path)} is {before!r} there "
                f"and {after!r} here; choose another run_dir or name"
            )


def _differences(
    old: Any, new: Any, path: tuple[str, ...]
) -> list[tuple[tuple[str, ...], Any, Any]]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict) and path not in FREE:
        keys = [*new, *(key for key in old if key not in new)]
        return [
            found
            for key in keys
            for found in _differences(old.get(key), new.get(key), (*path, key))
        ]
    return [(path, old, new)]


def open_directory(recipe: Recipe, environment: dict[str, Any]) -> int | None:
    """Make and lock the directory; write the full config and ``environment.json``. Returns the lock.

    Raises:
        RecipeError: If it cannot be made, or another process trains in it (`BusyError`).
    """
    directory = recipe.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"run_dir {directory} cannot be made: {error.strerror}") from None
    lock = acquire_lock(directory)
    write_text(directory / RECIPE, recipe_text(recipe))
    (directory / "checkpoints").mkdir(exist_ok=True)
    versions = {name: _version(name) for name in PACKAGES}
    text = json.dumps({"versions": versions, **environment}, indent=2) + "\n"
    write_text(directory / "environment.json", text)
    return lock


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def acquire_lock(directory: Path, *, timeout: float = LOCK_TIMEOUT) -> int | None:
    """Keep other processes from training in a run directory; BusyError if one still does after ``timeout`` seconds.

    Returns:
        A descriptor that holds the lock until it is closed or the process ends; None if the file system has none.
    """
    until = time.monotonic() + timeout
    try:
        file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    while not _try_lock(file):
        if time.monotonic() >= until:
            raise _busy(directory, file)
        time.sleep(0.2)
    with contextlib.suppress(OSError):  # only used in the error message
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return file


def _busy(directory: Path, file: int) -> BusyError:
    """The error of a lock that another process holds, which is named."""
    holder = ""
    with contextlib.suppress(OSError):
        holder = os.pread(file, 200, 0).decode(errors="replace")
    os.close(file)
    return BusyError(
        f"run directory {directory} is being trained in by {holder or 'another process'}; wait for it to end, "
        "or choose another run_dir"
    )


def _try_lock(file: int) -> bool:
    """Whether no other process holds the lock; True also if the file system has none."""
    try:  # `lockf`, unlike `flock`, is not inherited by loader workers, which are forks
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def write_status(directory: Path, state: State, message: str = "", **position: int) -> None:
    """Write ``status.json``: launchers turn every exit code into 1."""
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    status = {"state": state, "message": message, **position, "time": now}
    write_text(directory / STATUS, json.dumps(status, indent=2) + "\n")


def read_status(directory: Path) -> dict[str, Any]:
    """The content of ``status.json``; empty if it is missing or torn."""
    try:
        return dict(json.loads((directory / STATUS).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
    temporary.replace(path)
