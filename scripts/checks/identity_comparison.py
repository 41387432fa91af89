"""Differences between two run directories, bit for bit.

What a refactor may rename is declared in the tables below, old name -> new name.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from identity_cases import Probe
from safetensors.torch import load_file
from torch import Tensor

# Part of an old name -> part of the new one.
RENAMED = {"labelled.": "labeled.", "centre": "center", "alarm.rung": "alarm.triggered"}  # tensors
RENAMED_METRICS = {"neighbourhood": "neighborhood"}  # fields of metrics.jsonl
# Words of tables, keys and texts of results, texts of events.
RENAMED_WORDS = {
    "a class": "per class",
    "std: of the three groups": "std over the three groups",
    "standardise": "standardize",
    "standardised": "standardized",
    "equalised": "equalized",
    "neighbours": "neighbors",
    " a class:": " per class:",
    " images a class;": " images per class;",
}
# Fields that depend on the clock, and fields of probe results that may differ.
RATES = {"images_per_second", "seconds", "time"}
FREE_FIELDS: set[str] = set()

# Name at dd31d59 -> names in the new tree, the first that exists.
RUN_FILES = {
    "backbone.safetensors": ("backbone.safetensors",),
    "classifier.safetensors": ("classifier.safetensors",),
}
# Written by the training command itself.
RESULT_FILES = ("probe/supervised.json",)
CHECKPOINT_FILES = {
    "module.safetensors": ("module.safetensors",),
    "memory.safetensors": ("aux_state.safetensors", "memory.safetensors"),
}
# Its layout may change, so that only the set of its tensors is compared.
OPTIMIZER_FILES = {"optimiser.pt": ("optimizer.pt", "optimizer.safetensors", "optimiser.pt")}


def renamed(name: str, table: dict[str, str]) -> str:
    """The name with the parts of a table replaced."""
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def compare_runs(old: Path, new: Path) -> list[str]:
    """Differences between two run directories; empty if there are none."""
    found = compare_metrics(old / "metrics.jsonl", new / "metrics.jsonl")
    found += compare_tensor_files(old, new, RUN_FILES, at_least=1)
    for name in RESULT_FILES:
        if (old / name).is_file() or (new / name).is_file():
            found += compare_json(old / name, new / name)
    last = last_checkpoint(old), last_checkpoint(new)
    if last[1] is None or last[0] is None or last[0].name != last[1].name:
        names = [path.name if path is not None else "none" for path in last]
        return [*found, f"last checkpoint: {names[0]} -> {names[1]}"]
    found += compare_tensor_files(last[0], last[1], CHECKPOINT_FILES, at_least=1)
    return found + compare_optimizers(last[0], last[1])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a log, without what depends on the clock."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def compare_metrics(old: Path, new: Path) -> list[str]:
    """Differences between two logs, line by line."""
    before, after = read_metrics(old), read_metrics(new)
    before = [
        {renamed(name, RENAMED_METRICS): reworded(value) for name, value in line.items()}
        for line in before
    ]
    found = []
    if len(before) != len(after):
        found.append(f"{old.name}: {len(before)} lines -> {len(after)} lines")
    for number, (one, other) in enumerate(zip(before, after, strict=False), start=1):
        found += compare_values(one, other, f"{old.name} line {number}")
    return found


def reworded(value: Any) -> Any:
    """A value of dd31d59 in the words of the new tree."""
    if isinstance(value, dict):
        return {reworded(key): reworded(held) for key, held in value.items()}
    if isinstance(value, list):
        return [reworded(held) for held in value]
    if isinstance(value, str):
        for word, new_word in RENAMED_WORDS.items():
            value = re.sub(rf"\b{re.escape(word)}\b", new_word, value)
    return value


def compare_values(old: Any, new: Any, where: str) -> list[str]:
    """Differences between two values of JSON, with their place."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{where}: {key} is missing" for key in old if key not in new]
        found += [f"{where}: {key} is new" for key in new if key not in old]
        for key in old:
            if key in new and key not in FREE_FIELDS:
                found += compare_values(old[key], new[key], f"{where}, {key}")
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, pair in pairs for line in compare_values(*pair, f"{where}[{i}]")]
    if repr(old) == repr(new):  # of the same type too, and nan is nan
        return []
    text = f"{where}: {old!r} -> {new!r}"
    if isinstance(old, float) and isinstance(new, float):
        text += f" (by {abs(new - old):.3g})"
    return [text]


def last_checkpoint(run: Path) -> Path | None:
    """Latest checkpoint of a run; None if it has none."""
    found = sorted((run / "checkpoints").glob("step-*[0-9]"), key=lambda path: path.name)
    return found[-1] if found else None


def _located(
    old: Path, new: Path, table: dict[str, tuple[str, ...]]
) -> Iterator[tuple[Path, Path]]:
    """Each file of a table that one of the two folders holds, in both of them."""
    for name, candidates in table.items():
        existing = [new / candidate for candidate in candidates if (new / candidate).is_file()]
        if existing or (old / name).is_file():
            yield old / name, existing[0] if existing else new / candidates[0]


def compare_tensor_files(
    old: Path, new: Path, table: dict[str, tuple[str, ...]], *, at_least: int
) -> list[str]:
    """Differences between the safetensors files of two folders.

    Args:
        old: Folder of the reference.
        new: Folder of the new tree.
        table: Old name of each file and its possible new names.
        at_least: Number of files that there must be.
    """
    found, files = [], list(_located(old, new, table))
    if len(files) < at_least:
        found.append(f"{new}: {len(files)} files of weights, expected at least {at_least}")
    for one, other in files:
        missing = [path for path in (one, other) if not path.is_file()]
        if missing:
            found.append(f"{missing[0]} is missing")
        else:
            found += compare_tensors(load_file(one), load_file(other), one.name)
    return found


def compare_tensors(old: dict[str, Tensor], new: dict[str, Tensor], file: str) -> list[str]:
    """Differences between two sets of named tensors."""
    old = {renamed(name, RENAMED): tensor for name, tensor in old.items()}
    found = [f"{file}: tensor {name} is missing" for name in old if name not in new]
    found += [f"{file}: tensor {name} is new" for name in new if name not in old]
    if not old:
        found.append(f"{file}: holds no tensor")
    for name in old.keys() & new.keys():
        difference = describe_difference(old[name], new[name])
        if difference is not None:
            found.append(f"{file}: tensor {name}: {difference}")
    return sorted(found)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def describe_difference(old: Tensor, new: Tensor) -> str | None:
    """How two tensors differ; None if all their bits are equal."""
    kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (old, new)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} -> {kinds[1]}"
    if torch.equal(_bits(old), _bits(new)):
        return None
    gap = (new.double() - old.double()).abs()
    return f"{int((gap != 0).sum())} of {gap.numel()} values differ, by at most {gap.max():.3g}"


def compare_optimizers(old: Path, new: Path) -> list[str]:
    """Differences between the tensors of two optimizer states, whatever their names and order."""
    found = []
    for one, other in _located(old, new, OPTIMIZER_FILES):
        missing = [path for path in (one, other) if not path.is_file()]
        if missing:
            found.append(f"{missing[0]} is missing")
            continue
        before, after = (Counter(map(_digest, _state_tensors(path))) for path in (one, other))
        lost = (before - after).total()
        if before != after or not before:
            found.append(
                f"{one.name}: {lost} of {before.total()} tensors are not among the "
                f"{after.total()} of {other.name}"
            )
    return found


def _state_tensors(path: Path) -> list[Tensor]:
    """Tensors of an optimizer's state, without the counters of steps."""
    if path.suffix == ".safetensors":
        state: Any = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [tensor for tensor in _tensors_in(state) if tensor.ndim > 0]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(held)


def _digest(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    digest = sha256(_bits(tensor).numpy().tobytes()).hexdigest()
    return str(tensor.dtype), tuple(tensor.shape), digest


def compare_json(old: Path, new: Path) -> list[str]:
    """Differences between two files of results."""
    missing = [path for path in (old, new) if not path.is_file()]
    if missing:
        return [f"{missing[0]} is missing"]
    before, after = (json.loads(path.read_text()) for path in (old, new))
    return compare_values(reworded(before), after, f"probe/{old.name}")


def compare_probes(old: Path, new: Path, probe: Probe) -> list[str]:
    """Differences between the printed tables and the results of a probe."""
    tables = [(runs / f"{probe.name}.txt").read_text() for runs in (old, new)]
    before, after = reworded(tables[0]).splitlines(), tables[1].splitlines()
    found = []
    if len(before) != len(after) or len(before) < 3:
        found.append(f"printed table: {len(before)} lines -> {len(after)} lines")
    found += [
        f"printed table line {number}: {one!r} -> {other!r}"
        for number, (one, other) in enumerate(zip(before, after, strict=False), start=1)
        if one != other
    ]
    folders = [runs / f"{probe.of}-1" / "probe" for runs in (old, new)]
    files = folders[0] / f"{probe.name}.json", folders[1] / f"{probe.renamed}.json"
    return found + compare_json(*files)
