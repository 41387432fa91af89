"""``sslgh embed [MODEL] FOLDER -o FILE``."""

import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import typer

from sslgh.data.folders import skipped_words
from sslgh.engine.exit_codes import is_main, run_command
from sslgh.engine.launch import StopRequest, init_accelerator, shutdown_distributed
from sslgh.evaluation.features import forward_features, frozen
from sslgh.explore.embed import Plan, embed, plan_embedding
from sslgh.explore.embedding_table import check_suffix, write_table
from sslgh.explore.embeddings import Embeddings
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.model import load_model
from sslgh.explore.photos import find_photos
from sslgh.recipe.errors import located, printable

# Images of the timed step.
TIMED = 8
MOST_BROKEN = 10


def embed_command(
    words: Sequence[str], out: Path | None, *, workers: int | None, batch_size: int
) -> int:
    """Embed a folder, or what is new in it; returns the exit code.

    Args:
        words: FOLDER, or MODEL and FOLDER.
        out: The file to write; None: named after the folder, in the working folder.
        workers: Loader processes per rank.
        batch_size: Photos in one step of one rank.
    """
    code = run_command(lambda: _embed(words, out, workers, batch_size))
    shutdown_distributed()
    return code


def _embed(words: Sequence[str], out: Path | None, workers: int | None, batch_size: int) -> None:
    if len(words) > 2:
        raise ValueError(
            f"expected FOLDER, or MODEL and FOLDER, got {len(words)} words, the third {printable(words[2])}; put names "
            "with spaces into quotes"
        )
    folder = Path(words[-1]).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"{located(folder)} is not a folder; give the folder that holds the photos"
        )
    out = out or Path(f"{folder.resolve().name or 'photos'}-embeddings.npz")
    check_suffix(out)
    spec = words[0] if len(words) == 2 else None
    model = load_model(spec)
    # A table has no place for what resuming needs.
    plan = plan_embedding(model, lambda: find_photos(folder), out=out.with_suffix(".npz"))
    if is_main():
        typer.echo(first_line(folder, model, plan))
    begun = time.monotonic()
    with StopRequest() as stop:
        found = embed(model, plan, workers=workers, batch_size=batch_size, stop=lambda: stop.asked)
    if is_main():
        if out.suffix != ".npz":
            write_table(found, out)
        seconds = time.monotonic() - begun
        lines = last_lines(found, plan, out, seconds, folder=folder, model=spec)
        typer.echo("\n".join(lines))


def first_line(folder: Path, model: LoadedModel, plan: Plan) -> str:
    """What is going to be done, with which model, and how long it takes."""
    total, pending = len(plan.photos.names), len(plan.pending)
    work = f"{pending} of {total} photos" if pending < total else f"{total} photos"
    size, seconds = model.preprocess.size, pending * seconds_per_photo(model) if pending else 0.0
    return (
        f"embedding {work} of {printable(folder)} by {printable(model.name)} ({size} x {size} pixels, "
        f"{model.num_features} features), about {duration(seconds)} or more, by the network's speed"
    )


def seconds_per_photo(model: LoadedModel) -> float:
    """Time of the network alone for one image, on all processes together (seconds)."""
    accelerator = init_accelerator()
    side = model.preprocess.size
    images = torch.zeros(TIMED, 3, side, side, dtype=torch.uint8, device=accelerator.device)
    with frozen(model.backbone, accelerator.device):
        forward_features(model.backbone, images).cpu()  # the first is slower
        begun = time.monotonic()
        forward_features(model.backbone, images).cpu()
    return (time.monotonic() - begun) / (TIMED * int(accelerator.num_processes))


def duration(seconds: float) -> str:
    """Seconds in words.

    Examples:
        >>> [duration(s) for s in (0.4, 59, 61, 7300)]
        ['1 s', '59 s', '1 min', '2 h 2 min']
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def last_lines(
    found: Embeddings, plan: Plan, out: Path, seconds: float, *, folder: Path, model: str | None
) -> list[str]:
    """What was written, what was not, how fast, and the next step with the same ``model``."""
    lines = list(skipped_lines(found))
    also = (
        f" and {printable(plan.out.name)}, from which the next call goes on"
        if plan.out != out and plan.out
        else ""
    )
    lines.append(
        f"{printable(out)}: {len(found.files)} photos x {found.features.shape[1]} features{also}"
    )
    speed = len(plan.pending) / seconds
    lines.append(f"{len(plan.pending)} embedded in {duration(seconds)}, {speed:.3g} per second")
    path = str(plan.out)
    lines.append(
        f"in Python: from pathlib import Path; from sslgh.explore import load_embeddings; "
        f"found = load_embeddings(Path({path!r}))"
    )
    named = ["--model", model] if model else []
    lines.append(f"next: {shlex.join(['sslgh', 'look', str(folder), *named])}")
    return lines


def skipped_lines(found: Embeddings) -> Iterator[str]:
    """Broken photos by name, and other files by kind; nothing where there are none."""
    broken = list(found.skipped.items())
    if broken:
        yield f"broken, left out: {len(broken)}"
    for name, why in broken[:MOST_BROKEN]:
        yield f"  {printable(name)}: {why}"
    if len(broken) > MOST_BROKEN:
        yield f"  ... {len(broken) - MOST_BROKEN} more (array skipped of the file)"
    if words := skipped_words(found.left_out, 0):
        yield f"no photos: {words}"
