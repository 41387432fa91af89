"""``sslgh predict DIR_OR_RUN NEW_PHOTOS``."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import typer

from sslgh.engine.exit_codes import is_main, run_command
from sslgh.engine.launch import StopRequest, shutdown_distributed
from sslgh.explore.classifier_source import load_photo_classifier
from sslgh.explore.embed import embed, plan_embedding
from sslgh.explore.embed_command import duration, first_line, skipped_lines
from sslgh.explore.embeddings import Embeddings
from sslgh.explore.photo_classifier import PhotoClassifier
from sslgh.explore.photos import find_photos
from sslgh.explore.predict import UNSURE, PhotoKinds, photo_kinds, write_predictions
from sslgh.explore.prediction_page import prediction_page
from sslgh.explore.priors import expected_prior
from sslgh.explore.results_folder import Owner, check_results_folder, next_to
from sslgh.recipe.errors import printable

TABLE, PAGE, EMBEDDINGS = "predictions.csv", "predictions.html", "embeddings.npz"
OWNER = Owner("sslgh predict", TABLE, (EMBEDDINGS, TABLE))


def predict_command(
    source: str, folder: Path, *, prior: str | None, top: int, out: Path | None
) -> int:
    """Predict the photos of a folder; returns the exit code.

    Args:
        source: Folder of ``sslgh classify``, or a finetuned run.
        folder: Folder of photos.
        prior: Expected shares of the kinds, as for `expected_prior`.
        top: Number of kinds per photo.
        out: Folder for the results; None: next to ``folder``, with ``-predictions`` appended.
    """
    code = run_command(lambda: _predict(source, folder.expanduser(), prior, top, out))
    shutdown_distributed()
    return code


def _predict(source: str, folder: Path, prior: str | None, top: int, out: Path | None) -> None:
    begun = time.monotonic()
    model, classifier = load_photo_classifier(source)
    expected = expected_prior(classifier, prior)
    out = (out or next_to(folder, "predictions")).expanduser()
    check_results_folder(folder, out, OWNER)
    plan = plan_embedding(model, lambda: find_photos(folder), out=out / EMBEDDINGS)
    if is_main():
        typer.echo(first_line(folder, model, plan))
    with StopRequest() as stop:
        embedded = embed(model, plan, stop=lambda: stop.asked)
    if not is_main():
        return
    found = photo_kinds(classifier, embedded.features, embedded.files, prior=expected, top=top)
    write_predictions(found, out / TABLE)
    note = f"by {printable(source)}, {_prior_words(classifier, prior)}; faded: unsure"
    page = prediction_page(found, folder, title=f"Kinds in {folder.resolve().name}", note=note)
    (out / PAGE).write_text(page, encoding="utf-8")
    typer.echo("\n".join(last_lines(found, embedded, out, time.monotonic() - begun)))


def _prior_words(classifier: PhotoClassifier, prior: str | None) -> str:
    if prior is not None:
        return f"for the prior {printable(prior)}"
    if classifier.fixed:
        return f"for shares of the kinds that are not known: {printable(classifier.fixed)}"
    if torch.allclose(classifier.default, classifier.default[0]):
        return "for kinds that are equally common"
    return "for kinds as common as the classifier was trained to expect"


def last_lines(found: PhotoKinds, embedded: Embeddings, out: Path, seconds: float) -> Iterator[str]:
    """What was left out, what was found and written, the number to know, and the next step."""
    yield from skipped_lines(embedded)
    count = len(found.files)
    kinds = len(set(found.kinds[:, 0].tolist()))
    yield f"{count:,} photos of {kinds} of {len(found.class_names)} kinds"
    yield f"{printable(out)}: {TABLE}, {PAGE}"
    unlike = "" if found.unlike is None else f", {int(found.unlike.sum()):,} unlike anything seen"
    unsure = int(found.unsure.sum())
    yield f"{unsure:,} unsure (probability under {UNSURE:.0%}){unlike} ({duration(seconds)})"
    if unsure or (found.unlike is not None and found.unlike.any()):
        yield f"next: look at {PAGE}, label some of the unsure photos, and run sslgh classify again"
    else:
        yield f"next: look at {PAGE}"
