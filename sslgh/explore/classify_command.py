"""``sslgh classify FOLDER LABELS.csv... --out DIR``."""

import json
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from sslgh.data.image_set import DataError
from sslgh.engine.exit_codes import is_main, run_command
from sslgh.engine.launch import StopRequest, shutdown_distributed
from sslgh.explore.classifier_folder import CARD, TENSORS, save_fitted
from sslgh.explore.embed import embed, plan_embedding
from sslgh.explore.embed_command import duration, first_line, skipped_lines
from sslgh.explore.embeddings import Embeddings, load_embeddings
from sslgh.explore.head_choice import Comparison
from sslgh.explore.label_photos import FOLDS, Labeled, label_photos
from sslgh.explore.label_table import Labels, read_label_tables
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.look_tables import unfilled, write_table
from sslgh.explore.model import load_model
from sslgh.explore.photo_model import PhotoModel
from sslgh.explore.photos import find_photos
from sslgh.explore.results_folder import Owner, check_results_folder, make_folder, next_to
from sslgh.functional.groups import GROUPS
from sslgh.recipe.errors import located, printable, some_of
from sslgh.recipe.run_recipe import absolute_init

WRONG, NEXT, EMBEDDINGS = "likely_wrong_labels.csv", "next_to_label.csv", "embeddings.npz"
OWNER = Owner("sslgh classify", CARD, (EMBEDDINGS, TENSORS, CARD))
NEXT_COLUMNS = ("file", "kind", "predicted", "reason")
# Entries of the features that may differ between two readings of one photo, on another machine or device.
TOLERANCE = 1e-2


def classify_command(
    folder: Path,
    labels: Sequence[Path],
    out: Path,
    *,
    model: str | None,
    embeddings: Path | None,
) -> int:
    """Train heads on the labeled photos of a folder; returns the exit code.

    Args:
        folder: Folder of photos.
        labels: Tables of files and kinds.
        out: Folder for the classifier.
        model: Name of the network; None: that of ``embeddings``, or the best to be had here.
        embeddings: File of ``sslgh embed`` or ``sslgh look``; None: the photos are embedded.
    """
    code = run_command(lambda: _classify(folder, labels, out, model, embeddings))
    shutdown_distributed()
    return code


def _classify(
    folder: Path, tables: Sequence[Path], out: Path, spec: str | None, embeddings: Path | None
) -> None:
    begun = time.monotonic()
    folder, out, *tables = (path.expanduser() for path in (folder, out, *tables))
    check_results_folder(folder, out, OWNER)
    # A mistake in a table is found before an hour of embedding.
    files = find_photos(folder).names
    kinds = read_label_tables(tables, folder, files)
    if embeddings is None and spec is None:
        embeddings = _looked_at(folder, kinds)
    model, found = _features(folder, out, spec, embeddings)
    if not is_main():
        return
    if embeddings is not None:
        typer.echo(f"features of {printable(model.name)} from {printable(embeddings)}")
    if lost := sorted(kinds.kinds.keys() - set(found.files)):
        typer.echo(f"labeled, but not among the embedded photos and left out: {some_of(lost)}")
    known = {file: kind for file, kind in kinds.kinds.items() if file not in set(lost)}
    typer.echo(f"training heads on {len(known)} labeled photos of {len(set(known.values()))} kinds")
    result = label_photos(found.features, found.files, known, found.facts.get("hash"))
    make_folder(out)
    listed = _write(result, found, out, _card(model, tables, result))
    typer.echo("\n".join(last_lines(result, kinds, found, out, listed, time.monotonic() - begun)))
    typer.echo(_next_line(folder, [*tables, listed], out))


def _looked_at(folder: Path, labels: Labels) -> Path | None:
    """The embeddings of ``sslgh look`` next to the folder, if they hold every labeled photo."""
    path = next_to(folder, "look") / EMBEDDINGS
    if not path.is_file():
        return None
    try:
        return path if labels.kinds.keys() <= set(load_embeddings(path).files) else None
    except DataError:  # another format
        return None


def _features(
    folder: Path, out: Path, spec: str | None, embeddings: Path | None
) -> tuple[LoadedModel, Embeddings]:
    """The network and the features of the folder; collective."""
    if embeddings is not None:
        found = load_embeddings(embeddings.expanduser())
        model = load_model(spec or found.model)
        _check_fit(model, found, folder, embeddings)
        return model, found
    model = load_model(spec)
    plan = plan_embedding(model, lambda: find_photos(folder), out=out / EMBEDDINGS)
    if is_main():
        typer.echo(first_line(folder, model, plan))
    with StopRequest() as stop:
        return model, embed(model, plan, stop=lambda: stop.asked)


def _check_fit(model: LoadedModel, found: Embeddings, folder: Path, path: Path) -> None:
    """Refuse embeddings of another folder or another network: one photo is embedded again and compared."""
    name = next((name for name in found.files if (folder / name).is_file()), None)
    if name is None:
        raise DataError(
            f"{located(path)} holds none of the photos of {located(folder)}; give the embeddings of that folder"
        )
    again = PhotoModel(model, workers=0).embed([folder / name]).features[0]
    known = found.features[found.files.index(name)]
    size = np.abs(known).max()
    if again.shape != known.shape or not np.allclose(again, known, atol=TOLERANCE * size):
        raise DataError(
            f"{located(path)} holds other features of {printable(name)} than {printable(model.name)} gives; name the "
            "network with --model, or leave --embeddings out"
        )


def _card(model: LoadedModel, tables: Sequence[Path], result: Labeled) -> dict[str, Any]:
    """What else is kept: the network, and the figures."""
    return {
        "model": absolute_init(model.name),
        "fingerprint": model.fingerprint,
        "preprocessing": {"image_size": model.preprocess.size, **model.preprocess.card()},
        "labels_files": [str(path.resolve()) for path in tables],
        "rule": result.comparison.rule,
        "out_of_fold": {
            "folds": FOLDS,
            "photos": result.held_out,
            "groups_by": result.comparison.convention,
            "heads": {
                name: {"average": f.average, "error": f.error, **f.groups}
                for name, f in result.comparison.heads.items()
            },
            "calibration_error": result.calibration,
        },
    }


def _write(result: Labeled, found: Embeddings, out: Path, card: dict[str, Any]) -> Path:
    """Write all files; returns the list of what to label next."""
    save_fitted(result.fitted, out, json.loads(json.dumps(card)))
    names, files = result.fitted.class_names, found.files
    write_table(
        out / WRONG,
        ("file", "kind", "likely", "probability_of_kind"),
        (
            (files[s.row], names[s.given], names[s.likely], f"{s.confidence:.4f}")
            for s in result.wrong
        ),
    )
    listed = unfilled(out / NEXT, NEXT_COLUMNS)
    rows = ((files[c.row], "", names[c.group], c.reason) for c in result.next)
    write_table(listed, NEXT_COLUMNS, rows)
    return listed


def last_lines(
    result: Labeled, labels: Labels, found: Embeddings, out: Path, listed: Path, seconds: float
) -> Iterator[str]:
    """What the photos and labels were, the heads side by side, what was written, the number to know."""
    yield from skipped_lines(found)
    if alike := labels.alike:
        yield f"kinds that differ in upper and lower case only, taken as different: {some_of(alike)}"
    if labels.unlabeled:
        yield f"rows without a kind, left out: {labels.unlabeled}"
    if result.copies:
        yield f"near copies among the labeled photos: {result.copies}; they share a fold with their original"
    if result.single:
        yield (
            f"kinds with a single photo (or its copies), trained but not evaluated: {some_of(result.single)}"
        )
    yield from comparison_lines(
        result.comparison, len(result.fitted.class_names) - len(result.single)
    )
    yield f"likely wrong labels: {len(result.wrong)}; look at {WRONG} first"
    novelty = result.fitted.novelty
    if math.isfinite(novelty.threshold):
        yield (
            f"unlike anything seen: from a distance of {novelty.threshold:.3f} on, which at most {novelty.rate:.0%} of "
            "photos like the labeled ones have"
        )
    else:
        yield "unlike anything seen: not measured, as no labeled photo could be held out"
    yield f"{printable(out)}: {CARD}, {TENSORS}, {WRONG}, {printable(listed.name)}"
    yield _headline(result) + f" ({duration(seconds)})"


def _next_line(folder: Path, tables: Sequence[Path], out: Path) -> str:
    """What can be done now; the last of the tables is the list to fill."""
    again = shlex.join(["sslgh", "classify", *map(str, [folder, *tables]), "--out", str(out)])
    return (
        f"next: sslgh predict {shlex.quote(str(out))} NEW_PHOTOS, or fill the column kind of {printable(tables[-1].name)}, "
        f"then {printable(again)}"
    )


def comparison_lines(comparison: Comparison, classes: int) -> Iterator[str]:
    """The heads side by side, as a table."""
    if not comparison.heads:
        yield "no figures: every kind has a single photo; label two or more of each"
        return
    by = "by labels per kind: over 100, 20 to 100, under 20"
    by = by if comparison.convention == "thresholds" else "thirds of the kinds by number of labels"
    yield f"out of fold ({FOLDS} folds), mean accuracy over {classes} kinds in %; {by}"
    yield f"  {'head':<6}{'all':>13}" + "".join(f"{group:>9}" for group in GROUPS)
    for name, figures in comparison.heads.items():
        groups = "".join(f"{_percent(figures.groups[group]):>9}" for group in GROUPS)
        average = f"{_percent(figures.average)} ± {100 * figures.error:.1f}"
        yield f"  {name:<6}{average:>13}{groups}"
    yield f"  chosen: {comparison.chosen} (rule: {comparison.rule})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _headline(result: Labeled) -> str:
    chosen = result.fitted.objective
    figures = result.comparison.heads.get(chosen)
    if figures is None:
        return f"not measured: {result.comparison.rule}"
    return (
        f"mean accuracy over kinds {_percent(figures.average)} ± {100 * figures.error:.1f} % ({chosen}, out of fold on "
        f"{result.held_out} labeled photos)"
    )
