"""``sslgh select RUN_OR_LOOK_OR_EMBEDDINGS --budget N``."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from sslgh.data import training_set
from sslgh.data.image_set import DataError
from sslgh.engine.exit_codes import run_command
from sslgh.engine.launch import shutdown_distributed
from sslgh.explore.balanced import balanced_subset, stop_hint
from sslgh.explore.copy_folds import copy_units
from sslgh.explore.directions import centered, directions
from sslgh.explore.embed import embed, plan_embedding
from sslgh.explore.embeddings import Embeddings, load_embeddings
from sslgh.explore.groups import modes
from sslgh.explore.label_table import Labels, read_labels
from sslgh.explore.look_tables import write_table
from sslgh.explore.model import load_model
from sslgh.explore.photos import Photos, listed_photos
from sslgh.explore.select import NONE, Choice, select
from sslgh.models.serialization import run_of
from sslgh.recipe.errors import located, printable
from sslgh.recipe.run_recipe import load_run

EMBEDDINGS, PHOTOS = "embeddings.npz", "photos.csv"


class SelectOptions(NamedTuple):
    """What is asked for.

    Attributes:
        budget: Photos to label; None: none are listed.
        labels: Table of labels that are known.
        balanced: Photos of a balanced subset; None: none.
        out: File to write; None: named after what it holds, in the working folder.
        photos: Folder of the photos, for links.
        links: Folder for links to the chosen photos.
    """

    budget: int | None = None
    labels: Path | None = None
    balanced: int | None = None
    out: Path | None = None
    photos: Path | None = None
    links: Path | None = None


class Pool(NamedTuple):
    """Photos to choose from.

    Attributes:
        files: N names.
        rows: Unit rows, shape (N, D).
        groups: Group of each, shape (N,).
        copies: Number of each; the same for near copies, shape (N,).
    """

    files: list[str]
    rows: NDArray[np.float32]
    groups: NDArray[np.int64]
    copies: NDArray[np.int64]


def select_command(source: str, options: SelectOptions) -> int:
    """List photos to label, or a balanced subset; returns the exit code."""
    code = run_command(lambda: _select(source, options))
    shutdown_distributed()
    return code


def _select(source: str, options: SelectOptions) -> None:
    wanted = options.budget if options.balanced is None else options.balanced
    if wanted is None or (options.budget is not None and options.balanced is not None):
        raise DataError(
            "give --budget N for photos to label, or --balanced N for a balanced subset"
        )
    if (options.links is None) != (options.photos is None):
        raise DataError("links need both --links DIR and --photos FOLDER, in which the photos lie")
    name = "label_first.csv" if options.balanced is None else "balanced.csv"
    out = (options.out or Path(name)).expanduser()
    if os.path.lexists(out):
        raise DataError(f"{located(out)} is there already; write to another file with -o")
    pool = _pool(source)
    labels = (
        None
        if options.labels is None
        else read_labels(options.labels.expanduser(), Path(), pool.files)
    )
    if options.balanced is None:
        chosen = _label_first(pool, labels, wanted, out)
    else:
        chosen = _balanced(pool, labels, wanted, out)
    if options.links is not None and options.photos is not None:
        _link(
            [pool.files[row] for row in chosen],
            options.photos.expanduser(),
            options.links.expanduser(),
        )
    last = f"{printable(out)}: {len(chosen)} photos"
    typer.echo(last if options.links is None else f"{last}, linked in {printable(options.links)}")
    if options.balanced is None:
        typer.echo(
            f"next: fill its column kind, then sslgh classify FOLDER {printable(out)} --out DIR"
        )


def _label_first(pool: Pool, labels: Labels | None, budget: int, out: Path) -> list[int]:
    kinds = {} if labels is None else labels.kinds
    known = np.array([NONE if file not in kinds else 0 for file in pool.files], dtype=np.int64)
    found = select(pool.rows, budget, groups=pool.groups, copies=pool.copies, known=known)
    write_table(out, ("file", "kind", "group", "reason"), _rows(pool, kinds, found))
    if len(found) < budget:
        typer.echo(
            f"the budget is {budget}, but only {len(found)} of the {len(pool.files)} photos are left without labels and "
            "copies: all of them are listed"
        )
    if labels is not None and (hint := stop_hint(list(kinds.values()))):
        typer.echo(hint)
    groups = {choice.group for choice in found}
    typer.echo(f"photos of {len(groups)} of {len(set(pool.groups.tolist()))} groups")
    return [choice.row for choice in found]


def _rows(
    pool: Pool, kinds: dict[str, str], found: Sequence[Choice]
) -> Iterator[tuple[object, ...]]:
    """The labels that are known, then the photos to label."""
    position = {file: row for row, file in enumerate(pool.files)}
    for file, kind in kinds.items():
        yield (file, kind, int(pool.groups[position[file]]) + 1, "labeled")
    for choice in found:
        yield (pool.files[choice.row], "", choice.group + 1, choice.reason)


def _balanced(pool: Pool, labels: Labels | None, size: int, out: Path) -> list[int]:
    """A balanced subset of the labeled photos, or of all by their groups."""
    if labels is None:
        names = [f"group {group + 1}" for group in pool.groups.tolist()]
        groups = pool.groups
    else:
        names = [labels.kinds.get(file, "") for file in pool.files]
        number = {name: k for k, name in enumerate(labels.names)}
        groups = np.array([number.get(name, NONE) for name in names], dtype=np.int64)
    found: list[int] = balanced_subset(pool.rows, groups, size, copies=pool.copies).tolist()
    write_table(out, ("file", "kind"), ((pool.files[row], names[row]) for row in found))
    if len(found) < size:
        typer.echo(
            f"asked for {size} photos, but without copies there are {len(found)}: all are listed"
        )
    counts = sorted(np.bincount(groups[found])[np.unique(groups[found])].tolist())
    typer.echo(f"{len(counts)} kinds of {counts[0]} to {counts[-1]} photos")
    return found


def _link(files: Sequence[str], photos: Path, links: Path) -> None:
    """Links to the photos, in the same subfolders.

    Raises:
        DataError: If a photo is not there, or a link cannot be made.
    """
    for file in files:
        target, link = photos / file, links / file
        if not target.is_file():
            raise DataError(
                f"{located(target)} is not there; give --photos the folder of the photos"
            )
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target.resolve())
        except OSError as error:
            raise DataError(
                f"{located(link)} cannot be made ({error.strerror}); give --links a new folder"
            ) from None


def _pool(source: str) -> Pool:
    """The photos of a look, of a file of embeddings, or of a run's training set."""
    path = Path(source).expanduser()
    if run_of(source) is not None:
        return _grouped(_run_embeddings(source, path))
    file = path / EMBEDDINGS if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{located(path)} is no folder of sslgh look, no file of sslgh embed and no run; run sslgh look first"
        )
    found = load_embeddings(file)
    table = path / PHOTOS
    return _looked_at(found, table) if path.is_dir() and table.is_file() else _grouped(found)


def _run_embeddings(source: str, path: Path) -> Embeddings:
    images = training_set(load_run(path).data)
    if isinstance(images.images, np.ndarray):
        raise DataError(f"{located(path)} was trained on arrays; select takes runs on image files")
    photos = listed_photos([str(file) for file in images.images])
    named = Photos(photos.paths, list(images.names), photos.stamps, {})
    model = load_model(source)
    return embed(model, plan_embedding(model, lambda: named))


def _grouped(found: Embeddings) -> Pool:
    rows = directions(found.features)
    return Pool(found.files, rows, modes(rows, 0), copy_units(centered(found.features)))


def _looked_at(found: Embeddings, table: Path) -> Pool:
    """Groups and copies as ``sslgh look`` has written them."""
    # A spreadsheet may have saved it again, with a mark at its beginning or other separators.
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        reader = csv.DictReader(opened)
        if not {"file", "group", "copies"} <= set(reader.fieldnames or ()):
            raise DataError(
                f"{located(table)} has no columns file, group and copies, as sslgh look has written them; run it again"
            )
        rows = {row["file"]: row for row in reader}
    if missing := [file for file in found.files if file not in rows]:
        raise DataError(
            f"{located(table)} lacks {len(missing)} of the embedded photos ({printable(missing[0])} is the first); run "
            "sslgh look again"
        )
    groups = [int(rows[file]["group"]) - 1 for file in found.files]
    copies = [int(rows[file]["copies"] or 0) - 1 for file in found.files]
    return Pool(found.files, directions(found.features), np.array(groups), np.array(copies))
