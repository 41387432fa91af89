"""Look at a folder of photos without training: tables, a sheet of pictures, and what a terminal shows of it."""

import shlex
from pathlib import Path
from typing import NamedTuple

import typer

from sslgh.data.image_set import DataError
from sslgh.engine.exit_codes import is_main
from sslgh.engine.launch import StopRequest
from sslgh.explore.embed import Plan, embed, plan_embedding
from sslgh.explore.embed_command import duration, seconds_per_photo, skipped_lines
from sslgh.explore.embeddings import Embeddings
from sslgh.explore.extra import optional
from sslgh.explore.findings import Findings, find_all
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.look_tables import unfilled, write_table, write_tables
from sslgh.explore.model import load_model
from sslgh.explore.photo_facts import photo_facts
from sslgh.explore.photos import Photos, find_photos
from sslgh.explore.results_folder import (
    Owner,
    cannot_be_written,
    check_results_folder,
    next_to,
)
from sslgh.explore.select import Choice, select
from sslgh.explore.sheet import contact_sheet
from sslgh.recipe.errors import printable
from sslgh.recipe.run_recipe import absolute_path

# Photos to label first, when no number is given: what a person names in ten minutes.
BUDGET = 60
EMBEDDINGS = "embeddings.npz"
FIRST_COLUMNS = ("file", "kind", "group", "reason")
# The first file that is written into a folder for results: only what holds it, or nothing, is written into.
MARK = ".sslgh-look"
MARK_TEXT = "sslgh look made this folder, and writes its files anew when it is run again.\n"
OWNER = Owner("sslgh look", MARK)


class LookResult(NamedTuple):
    """A folder that was looked at.

    Attributes:
        folder: The folder.
        out: The folder that holds what was written.
        embeddings: Features of its photos.
        findings: What was found.
        first: Photos to label first.
        model: Name of the network.
    """

    folder: Path
    out: Path
    embeddings: Embeddings
    findings: Findings
    first: list[Choice]
    model: str


def look_folder(
    folder: Path,
    out: Path | None = None,
    model: LoadedModel | str | None = None,
    *,
    budget: int = BUDGET,
    workers: int | None = None,
    quiet: bool = False,
) -> LookResult | None:
    """Embed a folder, or what is new in it, and find groups, copies and outliers; files are written into ``out``.

    Collective: call it on every rank.

    Args:
        folder: Any tree of photos.
        out: Folder for the results; None: next to ``folder``, with ``-look`` appended.
        model: Network, or its name; None: the best to be had here.
        budget: Number of photos to label first.
        workers: Loader processes per rank; a core each by default.
        quiet: Print nothing of what is going to be done.

    Returns:
        The result on rank 0, None on other ranks.

    Raises:
        DataError: If the folder holds no photo that can be read, or ``out`` cannot be written, lies inside it or
            holds other files.
        ValueError: If imagehash is missing.
    """
    optional("imagehash")
    folder = Path(absolute_path(folder.expanduser()))
    out = results_folder(folder, out)
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    plan = plan_embedding(
        loaded, lambda: _photos(folder, out), out=out / EMBEDDINGS, facts=photo_facts
    )
    if is_main() and not quiet:
        typer.echo(first_line(folder, out, loaded, plan))
    with StopRequest() as stop:
        embeddings = embed(
            loaded, plan, facts=photo_facts, workers=workers, stop=lambda: stop.asked
        )
    if not is_main():
        return None
    if not quiet:
        typer.echo(f"finding groups and copies among {len(embeddings.files):,} photos")
    found = find_all(folder, embeddings.files, embeddings.features, embeddings.facts)
    copies = found.copies.group_of(len(found.files))
    first = select(found.rows, budget, groups=found.label, copies=copies)
    write_tables(found, out)
    _write_first(found, first, out)
    contact_sheet(folder, found).save(out / "sheet.png")
    return LookResult(folder, out, embeddings, found, first, loaded.name)


def _photos(folder: Path, out: Path) -> Photos:
    """The photos; only once there are some is the folder for the results made."""
    photos = find_photos(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text(MARK_TEXT, encoding="utf-8")
    except OSError:
        raise DataError(cannot_be_written(out)) from None
    return photos


def _write_first(found: Findings, first: list[Choice], out: Path) -> None:
    """Write label_first.csv, whose column of kinds is to be filled; lists that a user has filled in stay."""
    path = unfilled(out / "label_first.csv", FIRST_COLUMNS)
    rows = [(found.files[one.row], "", one.group + 1, one.reason) for one in first]
    write_table(path, FIRST_COLUMNS, rows)


def results_folder(folder: Path, out: Path | None) -> Path:
    """The folder for the results, whole; nothing is made yet, and errors are those of `check_results_folder`."""
    out = (out or next_to(folder, "look")).expanduser().resolve()
    check_results_folder(folder, out, OWNER)
    return out


def first_line(folder: Path, out: Path, model: LoadedModel, plan: Plan) -> str:
    """What is going to be done, with which model, and how long it takes."""
    total, pending = len(plan.photos.names), len(plan.pending)
    seconds = pending * seconds_per_photo(model) if pending else 0.0
    known = f", {total - pending:,} of them known from before" if pending < total else ""
    return (
        f"looking at {total:,} photos in {printable(folder)}{known}, by {printable(model.name)} without training: about "
        f"{duration(seconds)} by the network's speed, then some seconds; results in {printable(out)}"
    )


def last_lines(result: LookResult, seconds: float) -> list[str]:
    """What was found and written, the number to know, and the next command."""
    found = result.findings
    names = sorted(path.name for path in result.out.glob("[!.]*") if path.is_file())
    lines = [*skipped_lines(result.embeddings), *_counts(found)]
    lines.append(f"{printable(result.out)}: {', '.join(map(printable, names))}")
    lines.append(f"{_headline(found)} ({duration(seconds)})")
    lines.append(
        f"next: open {printable(result.out / 'report.html')}, label the first photos with the keys 1 to 9 and save "
        f"labels.csv; then {classify_line(result)}"
    )
    return lines


def classify_line(result: LookResult) -> str:
    """The command that learns the labels, with the features that are there already."""
    folder, features = (shlex.quote(str(p)) for p in (result.folder, result.out / EMBEDDINGS))
    return f"sslgh classify {folder} labels.csv --embeddings {features} --out kinds"


def _counts(found: Findings) -> list[str]:
    faults = ", ".join(f"{int(mask.sum())} {name}" for name, mask in found.faults.items())
    leaks = f", {len(found.leaks)} of their groups across splits" if any(found.split) else ""
    return [
        f"near copies: {found.copies.spare:,} photos could go{leaks}",
        f"odd: {len(found.odd):,} photos unlike all others; pictures: {faults}",
    ]


def _headline(found: Findings) -> str:
    """How many groups recur, and how unequal they are."""
    groups, tail = found.groups, found.tail
    largest = f"the largest holds {100 * tail.sizes[0] / sum(tail.sizes):.0f} % of the photos"
    if len(groups.groups) == 1:
        return "one group: these photos show no gaps between kinds"
    return (
        f"{len(groups.recurring)} of {len(groups.groups)} groups recur; {largest}, the smaller half of the groups "
        f"{100 * tail.rare_share:.1f} %"
    )
