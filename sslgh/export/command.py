"""``sslgh export RUN --to timm,torchvision,onnx,hf [-o DIR]``."""

import shlex
from collections.abc import Callable
from pathlib import Path

import typer

from sslgh.engine.exit_codes import run_command
from sslgh.export.exported import Exported, largest_difference
from sslgh.export.hugging_face_export import export_hugging_face
from sslgh.export.onnx_export import export_onnx
from sslgh.export.source import Source, read_source
from sslgh.export.timm_export import export_timm
from sslgh.export.torchvision_export import export_torchvision
from sslgh.models.serialization import PHOTO_CLASSIFIER, run_of
from sslgh.recipe.errors import located, printable, unknown_key

Export = Callable[[Source, Path], Exported]
TARGETS: dict[str, Export] = {
    "timm": export_timm,
    "torchvision": export_torchvision,
    "onnx": export_onnx,
    "hf": export_hugging_face,
}
LOAD = "load.py"


def export_command(run: str, targets: str, out: Path | None, *, features: bool) -> int:
    """Export the network of a run; returns the exit code.

    Args:
        run: A run directory.
        targets: Keys of `TARGETS`, with commas between them.
        out: Folder that gets one folder per target; None: ``export`` in the run directory.
        features: Leave the classifier of a finetuned run out.
    """
    return run_command(lambda: export_run(run, targets, out, features=features))


def export_run(run: str, targets: str, out: Path | None, *, features: bool = False) -> None:
    """Write what each target can hold, and print how to load it.

    Raises:
        ValueError: If ``run`` is not a run directory or a target is unknown; at the end, if a target cannot hold the
            network.
        MismatchError: If an export gives other outputs.
    """
    names = [name.strip() for name in targets.split(",")]
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"--to: {unknown_key(name, TARGETS)}")
    if (directory := run_of(run)) is None:
        raise ValueError(f"{located(run)} {_why_not(run)}")
    source = read_source(directory, features=features)
    out = out or directory / "export"
    typer.echo(first_line(source, names, out))
    refusals = [words for name in names if (words := _export(name, source, out / name))]
    if refusals:
        raise ValueError("; ".join(refusals))


def _why_not(run: str) -> str:
    """Why something that is no run directory cannot be exported, and the way out."""
    if (Path(run).expanduser() / PHOTO_CLASSIFIER).is_file():
        folder = printable(shlex.quote(run))
        return (
            "is a folder of sslgh classify, which holds heads and no network: it predicts photos with sslgh predict "
            f"{folder} NEW_PHOTOS and, in Python, sslgh.load; to export a network, give the run directory of sslgh pretrain or "
            "sslgh finetune"
        )
    return "is not a run directory with a trained backbone (backbone.json and backbone.safetensors)"


def first_line(source: Source, names: list[str], out: Path) -> str:
    """What is exported, and where to."""
    width = f"{source.backbone.num_features} features"
    if source.class_names:
        width += f", {len(source.class_names)} classes"
    return (
        f"exporting {printable(str(source.run))} ({source.card['backbone']}, {source.size} x {source.size} pixels, {width}) "
        f"to {', '.join(names)} in {printable(str(out))}"
    )


def _export(name: str, source: Source, folder: Path) -> str:
    """Export to one target; returns why it cannot hold the network, or nothing."""
    try:
        exported = TARGETS[name](source, folder)
    except ValueError as error:
        return str(error)
    for loading in exported.loadings:
        found = largest_difference(loading, source)
        typer.echo(
            f"\n{loading.library}, in a process of its own: largest difference {found.largest:.2g}, outputs up to "
            f"{found.scale:.2g}\n"
        )
        typer.echo("\n".join(f"    {line}" if line else "" for line in loading.placed()))
    # The folder can be moved, or given to others, together with its script.
    lines = exported.loadings[0].placed("Path(__file__).parent")
    (folder / LOAD).write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo(f"\n{printable(str(folder))}: {', '.join([*exported.files, LOAD])}")
    return ""
