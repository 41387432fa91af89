"""A scan as text for people and as a mapping for programs."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sslgh.data.folders import SPLITS, skipped_words
from sslgh.data.tree import kinds
from sslgh.functional.groups import shot_groups
from sslgh.recipe.errors import printable
from sslgh.scan.scan import Place, Scan

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
        "splits": _counted(place.split for place in scan.places.values() if place.split),
        "left_out": scan.splits.left_out,
        "classes": class_counts(scan.places.values()),
        "broken": {_name(scan, file.path): file.fault for file in scan.broken},
        "duplicates": _names(scan, scan.duplicates),
        "leaks": _names(scan, scan.leaks),
        "conflicts": _names(scan, scan.conflicts),
        "skipped": kinds(scan.tree),
        "hidden": len(scan.tree.hidden),
        "dangling": sorted(_name(scan, path) for path in scan.tree.dangling),
        "unreadable": {_name(scan, path): why for path, why in scan.tree.unreadable},
    }


def class_counts(places: Iterable[Place]) -> dict[str, dict[str, int]]:
    """Images of each class of each split, as training would see them.

    Returns:
        For each split ("" where the folder is not divided) the counts by class, most first; without
        the splits that have no classes.

    Examples:
        >>> class_counts([Place("", "cat"), Place("", "dog"), Place("", "dog"), Place("test", None)])
        {'': {'dog': 2, 'cat': 1}}
    """
    labels = defaultdict(list)
    for place in places:
        if place.label is not None:
            labels[place.split].append(place.label)
    return {split: _counted(names) for split, names in labels.items()}


def scan_text(scan: Scan) -> str:
    """A scan for a terminal; names can neither forge lines nor send terminal codes."""
    record = scan_record(scan)
    return "\n".join([*_overview(record), *_splits(record), *_classes(record), *_faults(record)])


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
        notes = ", ".join(f"{note} ({count})" for note, count in record["notes"].items())
        lines.append(f"read as: {notes}")
    return lines


def _splits(record: dict[str, Any]) -> list[str]:
    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{n} in {printable(name) or 'no folder'}" for name, n in counts.items())

    lines = [f"splits: {counted(record['splits'])}"] if record["splits"] else []
    if record["left_out"]:
        lines.append(f"neither trained nor tested on: {counted(record['left_out'])}")
    return lines


def _classes(record: dict[str, Any]) -> list[str]:
    lines = []
    for split, counts in record["classes"].items():
        groups = shot_groups(torch.tensor(list(counts.values())))
        sizes = ", ".join(f"{int(mask.sum())} {name}" for name, mask in groups.items())
        lines.append(f"{f'{split}: ' if split else ''}{len(counts)} classes ({sizes})")
        lines += _shortened([f"  {count:>8}  {printable(name)}" for name, count in counts.items()])
    classes = {SPLITS.get(split.lower()): counts for split, counts in record["classes"].items()}
    unknown = sorted(set(classes.get("test", ())) - set(classes.get("train", ())))
    if unknown and "train" in classes:
        names = ", ".join(printable(name) for name in unknown[:3])
        lines.append(f"test classes without a training image, which are refused: {names}")
    return lines


def _faults(record: dict[str, Any]) -> list[str]:
    lines = [f"broken: {len(record['broken'])} of {record['images']} images"]
    lines += [f"  {printable(name)}: {why}" for name, why in record["broken"].items()]
    if record["unreadable"]:
        lines.append(f"folders that cannot be listed: {len(record['unreadable'])}")
        lines += [f"  {printable(name)}: {why}" for name, why in record["unreadable"].items()]
    if record["dangling"]:
        lines.append(f"broken links: {len(record['dangling'])}")
        lines += _shortened([f"  {printable(name)}" for name in record["dangling"]])
    leaking, conflicting = len(record["leaks"]), len(record["conflicts"])
    lines += _equal(f"leaks: {leaking} images are in more than one split", record["leaks"])
    words = f"conflicts: {conflicting} images are under more than one class"
    lines += _equal(words, record["conflicts"])
    spare = sum(len(group) - 1 for group in record["duplicates"])
    words = f"exact duplicates: {spare} files are redundant copies"
    lines += _equal(words, record["duplicates"])
    if words := skipped_words(record["skipped"], record["hidden"]):
        lines.append(f"skipped files: {words}")
    return lines


def _equal(words: str, groups: list[list[str]]) -> list[str]:
    """Groups of equal files under a line of words; nothing without groups."""
    equal = [f"  {' = '.join(printable(name) for name in group)}" for group in groups]
    return [words, *_shortened(equal)] if groups else []


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"  ... {more} more (--json lists all)"]


def _counted(words: Any) -> dict[str, int]:
    """Counts by word, most first, equal counts in order of the word."""
    return dict(sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0])))


def _names(scan: Scan, groups: list[list[Path]]) -> list[list[str]]:
    return [[_name(scan, path) for path in group] for group in groups]


def _name(scan: Scan, path: Path) -> str:
    return path.relative_to(scan.folder).as_posix()
