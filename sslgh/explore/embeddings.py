"""Embeddings of photos, and the .npz file that holds them.

Shapes: N photos, F features.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslgh.data.arrays import UNREADABLE
from sslgh.data.image_set import DataError
from sslgh.explore.photos import Photos
from sslgh.recipe.errors import located, printable

# What the names of facts begin with in a file.
FACTS = "facts/"
# Arrays apart from features and facts.
NEEDED = ("files", "stamps", "skipped", "reasons", "left_out", "left_out_counts", "model", "key")


class Embeddings(NamedTuple):
    """Features of photos, in the order of the folder.

    Attributes:
        files: N names, relative to the folder, with slashes.
        features: float32 (N, F).
        facts: Arrays (N, ...) by name.
        skipped: Why a photo cannot be read, by its name.
        left_out: Counts of the folder's files that are no photos, by lower-case suffix.
        model: Name of the model.
    """

    files: list[str]
    features: NDArray[np.float32]
    facts: dict[str, NDArray[Any]]
    skipped: dict[str, str]
    left_out: dict[str, int]
    model: str


class Rows(NamedTuple):
    """Some photos with their features, as a file holds them.

    Attributes:
        names: N names.
        stamps: Size and time of change of each, int64 (N, 2), as in `Photos`.
        features: float32 (N, F).
        facts: Arrays (N, ...) by name.
        faults: Why other photos cannot be read, by their names.
    """

    names: list[str]
    stamps: NDArray[np.int64]
    features: NDArray[np.float32]
    facts: Mapping[str, NDArray[Any]]
    faults: dict[str, str]


def places(photos: Photos, names: Iterable[str], stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position in ``photos`` of each name; -1 if it is not there, or its file has changed since."""
    position = {name: i for i, name in enumerate(photos.names)}
    found = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    if not len(found):
        return found
    unchanged = (photos.stamps[found] == stamps).all(1) & (stamps[:, 0] >= 0)
    return np.where(unchanged, found, -1)


def assembled(photos: Photos, parts: Iterable[Rows], *, width: int, model: str) -> Embeddings:
    """One row per photo that a part has one of; later parts go before earlier ones.

    Args:
        photos: The photos.
        parts: Rows of them, and of others, which are left out. They are gone through once, so that they need not be
            in memory together.
        width: F.
        model: Name of the model.

    Raises:
        DataError: If no photo has a row.
    """
    features = np.empty((len(photos.names), width), dtype=np.float32)
    filled = np.zeros(len(features), dtype=bool)
    facts: dict[str, list[NDArray[Any]]] = {}
    rows: list[NDArray[np.int64]] = []
    faults: dict[str, str] = {}
    for part in parts:
        position = places(photos, part.names, part.stamps)
        held = position >= 0
        features[position[held]] = part.features[held]
        filled[position[held]] = True
        rows.append(position[held])
        for name, values in part.facts.items():
            facts.setdefault(name, []).append(values[held])
        faults |= part.faults
    skipped = {
        photos.names[i]: faults.get(photos.names[i], "") for i in np.flatnonzero(~filled).tolist()
    }
    if not filled.any():
        name, why = next(iter(skipped.items()))
        raise DataError(
            f"none of the {len(skipped)} photos can be read (first {printable(name)}: {why}); give others"
        )
    every = np.concatenate(rows)
    return Embeddings(
        [name for name, row in zip(photos.names, filled.tolist(), strict=True) if row],
        features if filled.all() else features[filled],
        {name: _ordered(values, every, len(filled))[filled] for name, values in facts.items()},
        skipped,
        photos.left_out,
        model,
    )


def _ordered(parts: list[NDArray[Any]], rows: NDArray[np.int64], count: int) -> NDArray[Any]:
    values = np.concatenate(parts)
    found = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    found[rows] = values
    return found


def write_rows(path: Path, rows: Rows, *, key: str, model: str, left_out: dict[str, int]) -> None:
    """Write an .npz file that `load_embeddings` and `read_rows` read; what was there stays if that fails.

    Args:
        path: The file.
        rows: The photos.
        key: Hash of all that the features depend on apart from the photos.
        model: Name of the model.
        left_out: As in `Embeddings`.

    Raises:
        OSError: If it cannot be written.
    """
    arrays: dict[str, Any] = {
        "files": _text(rows.names),
        "features": rows.features,
        "stamps": rows.stamps,
        "skipped": _text(rows.faults),
        "reasons": _text(rows.faults.values()),
        "left_out": _text(left_out),
        "left_out_counts": np.array(list(left_out.values()), dtype=np.int64),
        "model": np.array(model),
        "key": np.array(key),
    } | {FACTS + name: values for name, values in rows.facts.items()}
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _text(words: Iterable[str]) -> NDArray[np.str_]:
    return np.array(list(words), dtype=np.str_)


def read_rows(path: Path, *, key: str | None = None, names_only: bool = False) -> Rows:
    """The rows of a file.

    Args:
        path: An .npz file of `write_rows`.
        key: Refuse features that depend on something else; None: any.
        names_only: Leave features and facts out.

    Raises:
        DataError: If it cannot be read, or holds features of another model or other facts.
    """
    arrays = _arrays(path, names_only=names_only)
    if key is not None and str(arrays["key"]) != key:
        raise DataError(
            f"{located(path)} holds features of another model ({printable(str(arrays['model']))}), version or facts; "
            "write to another file, or move that one away"
        )
    return _rows(arrays)


def load_embeddings(path: Path) -> Embeddings:
    """Embeddings of a file that ``sslgh embed`` or `embed_folder` has written.

    Raises:
        DataError: If it cannot be read.
    """
    arrays = _arrays(path)
    rows = _rows(arrays)
    counts = zip(arrays["left_out"].tolist(), arrays["left_out_counts"].tolist(), strict=True)
    return Embeddings(
        rows.names, rows.features, dict(rows.facts), rows.faults, dict(counts), str(arrays["model"])
    )


def _rows(arrays: Mapping[str, NDArray[Any]]) -> Rows:
    names: list[str] = arrays["files"].tolist()
    features = arrays.get("features", np.empty((len(names), 0), dtype=np.float32))
    facts = {n.removeprefix(FACTS): a for n, a in arrays.items() if n.startswith(FACTS)}
    faults = dict(zip(arrays["skipped"].tolist(), arrays["reasons"].tolist(), strict=True))
    return Rows(names, arrays["stamps"], features, facts, faults)


def _arrays(path: Path, *, names_only: bool = False) -> dict[str, NDArray[Any]]:
    try:
        # Opened here: NumPy leaves the file open when it is no archive. Pickled arrays could run code.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            wanted = NEEDED if names_only else file.files
            return {name: np.asarray(file[name]) for name in {*wanted, *NEEDED}}
    except KeyError as error:
        why = f"{error.args[0]}; sslgh embed writes such files"
    except UNREADABLE as error:
        why = printable(str(error))[:200]
    raise DataError(
        f"{located(path)} cannot be read as embeddings of photos ({why}); write to another file, or move that one away"
    )
