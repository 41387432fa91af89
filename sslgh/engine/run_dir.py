"""The run directory: its recipe, environment, status and lock."""

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from sslgh.engine.kept_init import INIT, is_kept_init
from sslgh.recipe import Recipe, RecipeError, make_recipe
from sslgh.recipe.errors import printable
from sslgh.recipe.run_recipe import RECIPE, absolute_settings, run_settings, run_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

State = Literal["running", "done", "failed", "stopped"]
# Key path, value there, value here.
Difference = tuple[tuple[str, ...], Any, Any]

STATUS, LOCK, METRICS = "status.json", ".lock", "metrics.jsonl"
# Seconds to wait for the lock: a process that was asked to stop may still be saving.
LOCK_TIMEOUT = 10.0
# Windows locks bytes against reading too: one far behind the name of the holder.
WINDOWS_BYTE = 2**20
# Settings that may differ when a run is resumed: they change no weight. Images are known by their content.
FREE = {
    ("run_dir",),
    ("probe",),
    ("data", "root"),
    ("data", "list"),
    ("data", "test_root"),
    ("data", "test_list"),
    ("data", "workers"),
    ("data", "download"),
    ("data", "broken_share"),
    ("train", "processes"),
    ("train", "checkpoint_every"),
    ("train", "keep_last"),
    ("train", "keep_every"),
    ("train", "not_finite"),
    ("train", "log_every"),
    ("finetune", "five_crop"),
    ("finetune", "folds"),
}
# Asked to choose one, a run keeps the precision that it began with.
KEPT_PRECISION = (("train", "precision"), "auto")
# Nor does a run change its crops that asks for the interpolation of its weights.
KEPT_INTERPOLATION = (("data", "augment", "interpolation"), None)
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


LENGTH = ("train", "epochs")
# Files of a run that never took a step; dropped when another run takes the directory over.
LEFT_OVER = (METRICS, "images.json", "quarantine.json")
logger = logging.getLogger(__name__)


class OtherRunError(RecipeError):
    """The run directory is another run's."""


class BusyError(OtherRunError):
    """Another process trains in the run directory."""


def check_directory(recipe: Recipe) -> bool:
    """Whether the run directory holds a run of this recipe to resume; False also for one that it takes over.

    Raises:
        RecipeError: If it holds another run that took a step (`OtherRunError`), or other files; nothing is changed.
    """
    directory = recipe.directory
    if directory.exists() and not directory.is_dir():
        raise RecipeError(f"run directory {directory} is a file; choose another run_dir")
    if (directory / RECIPE).is_file():
        found = _differences(_recorded_settings(directory), run_settings(recipe), ())
        differing = [entry for entry in found if not _may_differ(directory, entry)]
        if differing and took_a_step(directory):
            raise OtherRunError(_other_run(recipe, differing))
        return not differing
    if directory.exists():
        _check_no_other_files(directory)
    return False


def _may_differ(directory: Path, difference: Difference) -> bool:
    """Whether a setting may differ when the run is resumed."""
    path, _, new = difference
    if path in FREE or (path, new) in (KEPT_PRECISION, KEPT_INTERPOLATION):
        return True
    return path == ("model", "init") and is_kept_init(directory, new)


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


def _recorded_settings(directory: Path) -> dict[str, Any]:
    """The settings of the run in a directory; paths of older runs may be relative to the working folder."""
    try:
        old = absolute_settings(yaml.safe_load((directory / RECIPE).read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, AttributeError):
        raise RecipeError(
            f"{directory / RECIPE} is damaged, so it is not known whose run this is; put back the recipe it began "
            "with, or choose another run_dir"
        ) from None
    try:  # keys that came since have their defaults
        return make_recipe(old).model_dump(mode="json")
    except RecipeError:  # keys that are no longer there
        return old


def took_a_step(directory: Path) -> bool:
    """Whether the run of a directory logged a step or saved anything that another run must not replace."""
    saved = [directory / "backbone.safetensors", *(directory / "checkpoints").glob("*step-*")]
    if any(path.exists() for path in saved) or read_status(directory).get("state") == "done":
        return True
    try:
        with (directory / METRICS).open(encoding="utf-8", errors="replace") as lines:
            return any('"kind": "train"' in line for line in lines)
    except FileNotFoundError:
        return False


def _other_run(recipe: Recipe, differing: Sequence[Difference]) -> str:
    """Why a directory holds another run, and the way out."""
    directory, epochs = printable(recipe.directory), recipe.train.epochs
    before = next((old for path, old, _ in differing if path == LENGTH), epochs)
    if before < epochs:
        done = read_status(recipe.directory).get("state") == "done"
        first = "" if done else f"end it with train.epochs={before} first; "
        return (
            f"run directory {directory} holds a run of {before} epochs, and its schedules depend on that length: "
            f"{epochs} epochs are another run; {first}to train its weights further add model.init={directory} and "
            "another run_dir"
        )
    path, old, new = differing[0]
    return (
        f"run directory {directory} holds another run: {'.'.join(path)} is {old!r} there "
        f"and {new!r} here; choose another run_dir or name"
    )


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> list[Difference]:
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
    # Looked at again: another run may have taken its first step before it freed the lock.
    if (directory / RECIPE).is_file() and not check_directory(recipe):
        _take_over(directory)
    write_text(directory / RECIPE, run_text(recipe))
    (directory / "checkpoints").mkdir(exist_ok=True)
    versions = {name: _version(name) for name in PACKAGES}
    text = json.dumps({"versions": versions, **environment}, indent=2) + "\n"
    write_text(directory / "environment.json", text)
    return lock


def _take_over(directory: Path) -> None:
    """Drop what describes another run that never took a step."""
    logger.warning("%s held another run that never took a step; this run takes it over", directory)
    shutil.rmtree(directory / INIT, ignore_errors=True)
    for name in LEFT_OVER:
        (directory / name).unlink(missing_ok=True)


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
        file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None
    while not _try_lock(file):
        if time.monotonic() >= until:
            raise _busy(directory, file)
        time.sleep(0.2)
    with contextlib.suppress(OSError):  # only used in the error message
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def note_killed(directory: Path) -> str | None:
    """A sentence about a run whose status is ``running`` although no process holds its lock; else None.

    Its status becomes ``failed``. Not to be called by the process that trains: it would lose its lock.
    """
    status = read_status(directory)
    if status.get("state") != "running":
        return None
    try:
        lock = acquire_lock(directory, timeout=0)
    except BusyError:
        return None
    if lock is not None:
        os.close(lock)
    message = f"killed in epoch {status.get('epoch')}; run the same command to resume"
    write_status(directory, "failed", message)
    return f"{printable(directory)} was {message}"


def _busy(directory: Path, file: int) -> BusyError:
    """The error of a lock that another process holds, which is named."""
    holder = ""
    with contextlib.suppress(OSError):
        os.lseek(file, 0, os.SEEK_SET)
        holder = os.read(file, 200).decode(errors="replace")
    os.close(file)
    return BusyError(
        f"run directory {directory} is being trained in by {holder or 'another process'}; wait for it to end, "
        "or choose another run_dir"
    )


def _try_lock(file: int) -> bool:
    """Whether no other process holds the lock; True also if the file system has none."""
    try:
        if fcntl is None:
            _lock_byte(file)
        else:  # `lockf`, unlike `flock`, is not inherited by loader workers, which are forks
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _lock_byte(file: int) -> None:
    """Lock on Windows; PermissionError if another process holds it."""
    windows: Any = importlib.import_module("msvcrt")
    os.lseek(file, WINDOWS_BYTE, os.SEEK_SET)
    windows.locking(file, windows.LK_NBLCK, 1)


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


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; empty if nothing was logged."""
    path = directory / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
    temporary.replace(path)
