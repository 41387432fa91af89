"""What each command does; the command line's signatures are in ``cli.py``."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from sslgh.data import input_size, training_set
from sslgh.engine.build import check_objective
from sslgh.engine.exit_codes import is_main, run_command
from sslgh.engine.finetune_folds import estimated_by_folds, finetune_folds
from sslgh.engine.finetuning import dry_run_finetuning
from sslgh.engine.finetuning import finetune as finetune_recipe
from sslgh.engine.launch import init_accelerator, shutdown_distributed
from sslgh.engine.pretraining import dry_run_pretraining
from sslgh.engine.pretraining import pretrain as pretrain_recipe
from sslgh.engine.run_dir import note_killed
from sslgh.evaluation import (
    Result,
    check_probes,
    check_settings,
    class_table,
    comparison_table,
    details_table,
    evaluate_run,
    labels_seen,
    load_feature_file,
    probe_backbone,
    probe_features,
)
from sslgh.last_lines import last_lines, usual_probes
from sslgh.models import load_backbone
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.models.library_backbones import TIMM, TORCHVISION
from sslgh.models.pretrained import is_library
from sslgh.models.serialization import WEIGHTS
from sslgh.models.weight_files import SUFFIXES
from sslgh.recipe import Recipe, RecipeError
from sslgh.recipe.errors import located, printable
from sslgh.recipe.loading import split_words
from sslgh.recipe.named import load_recipes
from sslgh.recipe.run_recipe import absolute_path, load_run
from sslgh.recipe.schema import Model
from sslgh.report.report_command import report_of_finished

NO_PROBE = "no probe in the recipe, so nothing is measured; for labeled data 'probe=[{protocol: knn}]' adds one"
FOLDS_FOLLOW = (
    "no labeled test images; after the training, networks on parts of the images estimate its accuracy, one for each "
    "of finetune.folds (null: no estimate)"
)


class Row(NamedTuple):
    """What a command has done: name and results, and the recipe of the run if there is one."""

    name: str
    results: Sequence[Result]
    recipe: Recipe | None = None


def load_checked(words: Sequence[str], *, gh: bool = False) -> list[Recipe]:
    """As `load_recipes`; names of objectives and protocols are checked too, before data are read."""
    recipes = load_recipes(words, gh=gh)
    for recipe in recipes:
        if recipe.finetune is not None:
            check_objective(recipe)
        for position, each in enumerate(recipe.probe):
            check_settings(each, f"probe.{position}")
    return recipes


def each_recipe(
    words: Sequence[str],
    work: Callable[[Recipe], Row],
    *,
    record: bool = True,
    details: bool = False,
    gh: bool = False,
) -> int:
    """Do the same with every recipe of a command line, then print one table; returns the exit code.

    ``work`` returns name and results. ``record``: ``status.json`` tells how it ended. ``details``: further
    tables are printed. ``gh``: each recipe is turned into its GH twin.
    """
    recipes: list[Recipe] = []
    rows: list[Row] = []
    code = run_command(lambda: recipes.extend(load_checked(words, gh=gh)))
    for recipe in recipes:
        code = code or run_command(
            lambda recipe=recipe: rows.append(work(recipe)),  # type: ignore[misc]
            recipe if record else None,
        )
    return _finish(rows, code, details=details)


def _finish(rows: Sequence[Row], code: int, *, details: bool) -> int:
    """Print the tables on rank 0 and leave the process group."""
    if is_main():
        if measured := [row[:2] for row in rows if row.results]:
            _print_tables(measured, details=details)
        for recipe, results in [(row.recipe, row.results) for row in rows]:
            if recipe is not None:
                typer.echo("\n" + "\n".join(last_lines(recipe, results, details=details)))
    shutdown_distributed()
    return code


def _print_tables(rows: Sequence[tuple[str, Sequence[Result]]], *, details: bool) -> None:
    typer.echo("\n" + comparison_table(rows))
    if details:
        typer.echo("\n" + details_table(rows))
        for name, results in rows:
            for result in results:
                typer.echo(f"\n{printable(name)}\n{class_table(result)}")


def pretrain(recipe: Recipe) -> Row:
    """Pretrain; there are no results yet."""
    directory = pretrain_recipe(recipe, init_accelerator(recipe.train.processes))
    return Row(directory.name, [], recipe)


def dry_run(recipe: Recipe) -> Row:
    """Build everything and take one step."""
    attempt = dry_run_pretraining if recipe.finetune is None else dry_run_finetuning
    attempt(recipe, init_accelerator(recipe.train.processes))
    return Row(recipe.name, [])


def finetune(recipe: Recipe) -> Row:
    """Train on labels, then evaluate."""
    check_probes(recipe.data, recipe.probe, recipe.directory, labels_seen=labels_seen(recipe))
    accelerator = init_accelerator(recipe.train.processes)
    if by_folds := estimated_by_folds(recipe):
        accelerator.print(f"{recipe.name}: {FOLDS_FOLLOW}")
    finetune_recipe(recipe, accelerator)
    if by_folds:
        finetune_folds(recipe, accelerator)
    return _probe_run(recipe)


def run(recipe: Recipe) -> Row:
    """Train, probe, and write the page of the run."""
    if recipe.finetune is not None:
        row = finetune(recipe)
    else:
        check_probes(recipe.data, recipe.probe, recipe.directory)
        pretrain(recipe)
        row = _probe_run(recipe)
    if is_main():
        report_of_finished(recipe.directory)
    return row


def probe(
    words: Sequence[str],
    features: Path | None,
    *,
    recipe: str | None,
    out: Path,
    pretrained: bool,
    details: bool,
) -> int:
    """Probe runs, backbones and a file of features, and print one table.

    Args:
        words: Run directories, names of backbones, and overrides.
        features: File of features and labels.
        recipe: Recipe whose data and probes are used for a backbone or file.
        out: Folder of the results of backbones and files.
        pretrained: Whether named backbones get their library's weights.
        details: Whether to print the further tables.

    Returns:
        The exit code.
    """
    targets, overrides = split_words(words)
    rows: list[Row] = []

    def work() -> None:
        if not targets and features is None:
            raise RecipeError(
                "nothing to probe; name a run directory, a backbone or --features FILE"
            )
        for target in targets:
            if os.path.exists(f"{target}/recipe.yaml"):  # noqa: PTH110 - never raises
                rows.append(_probe_run(load_run(Path(target), overrides)))
            elif is_library(target) or Path(target).suffix in SUFFIXES:
                rows.append(_probe_backbone(target, recipe, overrides, out, pretrained=pretrained))
            else:
                raise RecipeError(
                    f"{located(target)} is not a run directory: it holds no recipe.yaml; a file of weights ends with "
                    f"{' or '.join(SUFFIXES)}"
                )
        if features is not None:
            rows.append(_probe_file(features, recipe, overrides, out))

    return _finish(rows, run_command(work), details=details)


def _probe_run(recipe: Recipe) -> Row:
    trained = (recipe.directory / WEIGHTS).exists()
    if not trained and (killed := note_killed(recipe.directory)) is not None:
        raise RecipeError(killed)
    evaluated = [] if recipe.finetune is None else evaluate_run(recipe, init_accelerator())
    if not recipe.probe:
        return Row(recipe.directory.name, evaluated, recipe)
    backbone, _ = load_backbone(recipe.directory)
    accelerator = init_accelerator()
    results = probe_backbone(backbone, recipe, directory=recipe.directory, accelerator=accelerator)
    return Row(recipe.directory.name, [*evaluated, *results], recipe)


def _probe_backbone(
    target: str, recipe_name: str | None, overrides: list[str], out: Path, *, pretrained: bool
) -> Row:
    if recipe_name is None:
        raise RecipeError(f"{target} needs data to be evaluated on; add --recipe RECIPE")
    recipe = load_recipes([recipe_name, *overrides])[0]
    if not recipe.probe:
        typer.echo(f"{target}: {NO_PROBE}")
    model = _model_of(target, recipe, pretrained=pretrained)
    size = input_size(recipe.data, training_set(recipe.data), initial_card(model)["image_size"])
    backbone = initial_backbone(model, size)
    name = _folder_name(target) + ("-random" if model.init is None else "")
    directory = _results_folder(out, name)
    results = probe_backbone(backbone, recipe, directory=directory, accelerator=init_accelerator())
    return Row(name, results)


def _model_of(target: str, recipe: Recipe, *, pretrained: bool) -> Model:
    """The model that a name or file of weights stands for; the architecture of a file is the recipe's."""
    if not is_library(target):
        return recipe.model.model_copy(update={"init": target})
    if target.startswith((TIMM, TORCHVISION)) and not pretrained:
        return Model(backbone=target)
    return Model(init=target)


def _probe_file(file: Path, recipe_name: str | None, overrides: list[str], out: Path) -> Row:
    if recipe_name is not None:
        probes = load_recipes([recipe_name, *overrides])[0].probe
    else:
        probes = usual_probes(overrides)
    if not probes:
        typer.echo(f"{file}: {NO_PROBE}")
        return Row(file.stem, [])
    directory = _results_folder(out, _folder_name(file.stem))
    features = load_feature_file(file)
    origin = absolute_path(file)
    results = probe_features(*features, probes, directory=directory, origin=origin)
    return Row(file.stem, results)


def _folder_name(name: str) -> str:
    """A name that is one folder: ``...npz`` has the stem ``..``, and a backbone's has a colon."""
    return name.replace(":", "-").replace("/", "-").strip(".") or "features"


def _results_folder(out: Path, name: str) -> Path:
    """The folder for results that belong to no run; refused where it would overwrite a run's."""
    if (out / name / "recipe.yaml").exists():
        raise RecipeError(
            f"{out / name} is a run, whose results would be lost; choose another --out"
        )
    return out / name
