"""The run directory: what it holds, whose it is, and how the run stands."""

import importlib.metadata
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from sslgh.engine.run_lock import LOCK, hold
from sslgh.recipe import Recipe, RecipeError, recipe_text

State = Literal["running", "done", "failed", "stopped"]

RECIPE, STATUS = "recipe.yaml", "status.json"
# What may differ when a run goes on: it changes no weight.
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


def check_directory(recipe: Recipe) -> bool:
    """Whether the run directory holds a run of this recipe to go on with.

    Raises:
        RecipeError: If it holds another run, or files that are no run; nothing is touched.
    """
    directory = recipe.directory
    if directory.exists() and not directory.is_dir():
        raise RecipeError(f"run directory {directory} is a file; choose another run_dir")
    if (directory / RECIPE).is_file():
        _agree(recipe, directory)
        return True
    foreign = [path.name for path in _entries(directory) if not _is_left_over(path)]
    if foreign:
        raise RecipeError(
            f"run directory {directory} holds {sorted(foreign)[0]} but no run; choose another run_dir"
        )
    return False


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.exists() else []


def _is_left_over(path: Path) -> bool:
    """Whether a run that was killed before it had written its recipe may have left this."""
    if path.is_dir():
        return path.name == "checkpoints" and not any(path.iterdir())
    return path.name in (STATUS, LOCK) or path.suffix == ".tmp"


def _agree(recipe: Recipe, directory: Path) -> None:
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
                f"and {after!r} here; choose another run_dir or name, or delete it"
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
    """Make the directory, with the resolved recipe and the environment in it.

    Returns:
        What keeps other processes out of it, as `hold` has it.

    Raises:
        RecipeError: If it cannot be made.
        BusyError: If another process trains in it.
    """
    directory = recipe.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"run_dir {directory} cannot be made: {error.strerror}") from None
    lock = hold(directory)
    write_text(directory / RECIPE, recipe_text(recipe))
    (directory / "checkpoints").mkdir(exist_ok=True)
    versions = {name: _version(name) for name in PACKAGES}
    text = json.dumps({"versions": versions, **environment}, indent=2)
    write_text(directory / "environment.json", text + "\n")
    return lock


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_status(directory: Path, state: State, message: str = "", **position: int) -> None:
    """Write ``status.json``: the state, since launchers turn every exit code into 1."""
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    status = {"state": state, "message": message, **position, "time": now}
    write_text(directory / STATUS, json.dumps(status, indent=2) + "\n")


def read_status(directory: Path) -> dict[str, Any]:
    """The content of ``status.json``; empty where there is none, or a torn one."""
    try:
        return dict(json.loads((directory / STATUS).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
    temporary.replace(path)
