"""The commands on a folder of photos: parse and call, as in ``cli.py``."""

from pathlib import Path
from typing import Annotated

import typer

photos_app = typer.Typer()


Workers = Annotated[
    int | None, typer.Option(min=0, help="Loader processes; default: one per core, at most 8.")
]


@photos_app.command()
def look(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Any tree of photos.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the results; default: FOLDER-look next to it."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="As for embed; default: the best to be had here."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Number of photos to label first.")] = 60,
    workers: Workers = None,
) -> None:
    """Show what a folder of photos holds, without training: groups, copies, odd ones, what to label."""
    from sslgh.report.look_command import look_command

    raise typer.Exit(look_command(folder, out, model, budget=budget, workers=workers))


@photos_app.command()
def embed(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FOLDER",
            help="Any tree of photos, and before it the model: a run directory, timm:NAME, torchvision:NAME, "
            "hf-hub:NAME, package:efficientnet-lite0 or a file of weights; default: the best to be had here.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File .npz, .csv or .parquet; default: FOLDER-embeddings.npz here."
        ),
    ] = None,
    workers: Workers = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos in one step.")] = 64,
) -> None:
    """Write features and names of all photos of a folder; a second call embeds only new ones."""
    from sslgh.explore.embed_command import embed_command

    raise typer.Exit(embed_command(words, out, workers=workers, batch_size=batch_size))


@photos_app.command()
def select(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_LOOK_OR_EMBEDDINGS", help="Run, folder of sslgh look, or .npz."
        ),
    ],
    budget: Annotated[int | None, typer.Option(min=1, help="Photos to label first.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV or TSV of known labels, from which the list goes on.")
    ] = None,
    balanced: Annotated[
        int | None, typer.Option(min=1, help="Photos of a balanced subset instead.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File; default: label_first.csv or balanced.csv."),
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of the photos, for --links.")] = None,
    links: Annotated[
        Path | None, typer.Option(help="Folder for links to the chosen photos.")
    ] = None,
) -> None:
    """List which photos to label first, or a balanced subset."""
    from sslgh.explore.select_command import SelectOptions, select_command

    options = SelectOptions(budget, labels, balanced, out, photos, links)
    raise typer.Exit(select_command(source, options))


@photos_app.command()
def classify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Any tree of photos.")],
    labels: Annotated[
        list[Path],
        typer.Argument(metavar="LABELS...", help="CSV or TSV with columns file and kind."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the classifier.")],
    model: Annotated[
        str | None, typer.Option(help="Network, as for sslgh embed; default: the best to be had.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help=".npz of sslgh look or sslgh embed, instead of embedding.")
    ] = None,
) -> None:
    """Train heads on labeled photos, measured out of fold; list likely wrong labels and what to label next."""
    from sslgh.explore.classify_command import classify_command

    raise typer.Exit(classify_command(folder, labels, out, model=model, embeddings=embeddings))


@photos_app.command()
def predict(
    source: Annotated[
        str,
        typer.Argument(metavar="DIR_OR_RUN", help="Folder of sslgh classify, or a finetuned run."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="NEW_PHOTOS", help="Any tree of photos.")],
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="train|balanced|FILE",
            help="How common the kinds are expected to be: as among the labels, equally, or lines 'kind,share'; default: "
            "as the classifier was trained to decide.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=2, help="Kinds per photo.")] = 2,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; default: NEW_PHOTOS-predictions.")
    ] = None,
) -> None:
    """Write the kinds of new photos, with their probabilities: predictions.csv and predictions.html."""
    from sslgh.explore.predict_command import predict_command

    raise typer.Exit(predict_command(source, folder, prior=prior, top=top, out=out))
