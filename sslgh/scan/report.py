"""A scan as text for people and as a mapping for programs."""

import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from sslgh.data.folders import SPLITS
from sslgh.functional.groups import shot_groups
from sslgh.recipe.errors import printable
from sslgh.scan.scan import Scan

# Lines of a kind in the text; the JSON holds all. Broken files are always named.
MOST_LINES = 40


def scan_record(scan: Scan) -> dict[str, Any]:
    """Everything a scan found, for ``json.dumps``; names are exact and relative to the folder."""
    sound = [file for file in scan.files if file.fault is None]
    sides = [side for file in sound for side in (file.width, file.height)]
    return {
        "folder": str(scan.folder),
        "images": len(scan.files),
        "bytes": sum(file.bytes for file in scan.files),
        "formats": _counted(file.format for file in sound),
        "sides": {
            "smallest": min(sides, default=None),
            "median": statistics.median_low(sides) if sides else None,
            "largest": max(sides, default=None),
        },
        "notes": _counted(note for file in sound for note in file.notes),
        "classes": class_counts([_name(scan, file.path) for file in scan.files]),
        "broken": {_name(scan, file.path): file.fault for file in scan.broken},
        "duplicates": [[_name(scan, path) for path in group] for group in scan.duplicates],
        "skipped": _counted(path.suffix.lower() for path in scan.tree.others),
        "dangling": sorted(_name(scan, path) for path in scan.tree.dangling),
        "unreadable": {_name(scan, path): why for path, why in scan.tree.unreadable},
    }


def class_counts(names: list[str]) -> dict[str, dict[str, int]]:
    """Images of each class of each split, as training would see them.

    Args:
        names: File names relative to the folder, with ``/``.

    Returns:
        For each split ("" where the folder is not divided) the counts by class, most first; without
        the splits that have no classes.

    Examples:
        >>> class_counts(["cat/1.png", "dog/1.png", "dog/2.png"])
        {'': {'dog': 2, 'cat': 1}}
        >>> class_counts(["train/a/1.png", "train/b/1.png", "test/1.png"])
        {'train': {'a': 1, 'b': 1}}
    """
    parts = [Path(name).parts for name in names]
    top = {path[0] for path in parts if len(path) > 1}
    divided = "train" in top and top <= SPLITS
    splits = defaultdict(list)
    for path in parts:
        inside = path[1:] if divided and len(path) > 1 else path
        splits[path[0] if inside != path else ""].append(inside)
    nested = {
        split: _counted(path[0] for path in paths)
        for split, paths in splits.items()
        if all(len(path) > 1 for path in paths)
    }
    return {split: counts for split, counts in nested.items() if len(counts) > 1}


def scan_text(scan: Scan) -> str:
    """A scan for a terminal; names can neither forge lines nor send terminal codes."""
    record = scan_record(scan)
    return "\n".join([*_overview(record), *_classes(record), *_faults(record)])


def _overview(record: dict[str, Any]) -> list[str]:
    formats = ", ".join(f"{count} {name}" for name, count in record["formats"].items())
    lines = [
        f"{printable(record['folder'])}: {record['images']} images, {record['bytes'] / 1e6:.1f} MB",
        f"formats: {formats or 'none'}",
    ]
    if record["sides"]["median"] is not None:
        sides = ", ".join(f"{name} {value}" for name, value in record["sides"].items())
        lines.append(f"sides in pixels: {sides}")
    if record["notes"]:
        notes = ", ".join(f"{count} {note}" for note, count in record["notes"].items())
        lines.append(f"converted on reading: {notes}")
    return lines


def _classes(record: dict[str, Any]) -> list[str]:
    lines = []
    for split, counts in record["classes"].items():
        groups = shot_groups(torch.tensor(list(counts.values())))
        sizes = ", ".join(f"{int(mask.sum())} {name}" for name, mask in groups.items())
        lines.append(f"{f'{split}: ' if split else ''}{len(counts)} classes ({sizes})")
        lines += _shortened([f"  {count:>8}  {printable(name)}" for name, count in counts.items()])
    classes = record["classes"]
    unknown = sorted(set(classes.get("test", ())) - set(classes.get("train", ())))
    if unknown and "train" in classes:
        names = ", ".join(printable(name) for name in unknown[:3])
        lines.append(f"test has {len(unknown)} classes that train lacks, which is refused: {names}")
    return lines


def _faults(record: dict[str, Any]) -> list[str]:
    lines = [f"broken: {len(record['broken'])} of {record['images']} images"]
    lines += [f"  {printable(name)}: {why}" for name, why in record["broken"].items()]
    if record["unreadable"]:
        lines.append(f"folders that cannot be listed: {len(record['unreadable'])}")
        lines += [f"  {printable(name)}: {why}" for name, why in record["unreadable"].items()]
    if record["dangling"]:
        lines.append(f"links that lead nowhere: {len(record['dangling'])}")
        lines += _shortened([f"  {printable(name)}" for name in record["dangling"]])
    if record["duplicates"]:
        spare = sum(len(group) - 1 for group in record["duplicates"])
        lines.append(f"exact duplicates: {spare} files more than there are images")
        groups = [" = ".join(printable(n) for n in group) for group in record["duplicates"]]
        lines += _shortened([f"  {group}" for group in groups])
    if record["skipped"]:
        kinds = [f"{n} {printable(kind) or 'without'}" for kind, n in record["skipped"].items()]
        lines.append(f"skipped by extension: {', '.join(kinds[:MOST_LINES])}")
    return lines


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"  ... {more} more (--json lists all)"]


def _counted(words: Any) -> dict[str, int]:
    """Counts by word, most first, equal counts in order of the word."""
    return dict(sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0])))


def _name(scan: Scan, path: Path) -> str:
    return path.relative_to(scan.folder).as_posix()
