"""The command line: parse, call, print.

Imports stand inside the functions, so that ``sslgh --help`` does not wait for torch.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sslgh.doctor.check_result import CheckResult
    from sslgh.evaluation import Result
    from sslgh.recipe import Recipe

    Row = tuple[str, Sequence[Result]]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain image backbones without labels on long-tailed data; train and judge classifiers.",
)
recipe_app = typer.Typer(no_args_is_help=True, help="Show, list and describe recipes.")
app.add_typer(recipe_app, name="recipe")

Words = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, and overrides of all."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``sslgh`` and ``python -m sslgh``."""
    app(args=None if arguments is None else list(arguments), prog_name="sslgh")


NO_PROBE = "no probe in the recipe; 'probe=[{protocol: knn}]' adds one"

DryRun = Annotated[
    bool, typer.Option(help="Build everything, take one step, write nothing.", show_default=False)
]


Details = Annotated[
    bool,
    typer.Option("--details", help="Also print further metrics, and the accuracy of every class."),
]


@app.command()
def pretrain(words: Words, dry_run: DryRun = False) -> None:
    """Pretrain a backbone, or go on with a run that was stopped."""
    _each_recipe(words, _try if dry_run else _pretrain, record=not dry_run)


@app.command()
def run(words: Words, details: Details = False) -> None:
    """Pretrain, probe and compare: the main job in one command."""
    _each_recipe(words, _pretrain_and_probe, details=details)


@app.command()
def finetune(words: Words, dry_run: DryRun = False, details: Details = False) -> None:
    """Train on long-tailed labels, from scratch or from model.init=RUN, and judge the result."""
    _each_recipe(words, _try if dry_run else _finetune, record=not dry_run, details=details)


@app.command()
def probe(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|timm:NAME|torchvision:NAME]... [KEY=VALUE]...",
            help="Run directories or backbones, and overrides such as 'probe=[{protocol: knn}]'.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose data and probes judge a backbone or file.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help=".npz with train_ and test_ features and labels.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option(help="Load the default weights of a named backbone.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the results of backbones and files.")
    ] = Path("runs"),
    details: Details = False,
) -> None:
    """Probe runs, any timm or torchvision backbone, or anyone's features, in one table."""
    from sslgh.engine.exit_codes import run_command
    from sslgh.recipe import RecipeError

    targets, overrides = _split(words or [])
    rows: list[Row] = []

    def work() -> None:
        if not targets and features is None:
            raise RecipeError(
                "nothing to probe; name a run directory, a backbone or --features FILE"
            )
        options = (recipe, overrides, out, pretrained)
        rows.extend(_probe_target(target, *options) for target in targets)
        if features is not None:
            rows.append(_probe_file(features, recipe, overrides, out))

    code = run_command(work)
    _leave(rows, code, details=details)


@app.command()
def scan(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Any tree of images.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON.", show_default=False)
    ] = False,
) -> None:
    """Decode every image of a folder and name the broken ones; exit 1 if there are any."""
    from sslgh.engine.exit_codes import FAILED, run_command
    from sslgh.scan.report import scan_record, scan_text
    from sslgh.scan.scan import scan_folder

    faulty = []

    def work() -> None:
        found = scan_folder(folder)
        faulty.append(not found.is_sound)
        text = json.dumps(scan_record(found), indent=2) if as_json else scan_text(found)
        # A terminal without UTF-8 shows letters it lacks as escapes.
        encoding = sys.stdout.encoding or "utf-8"
        typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))

    raise typer.Exit(run_command(work) or (FAILED if any(faulty) else 0))


@recipe_app.command("show")
def show(words: Words) -> None:
    """Print the resolved recipe, every default written out."""
    from sslgh.engine.exit_codes import run_command
    from sslgh.recipe import recipe_text

    def work() -> None:
        for recipe in _load(words):
            typer.echo(recipe_text(recipe), nl=False)

    raise typer.Exit(run_command(work))


@recipe_app.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from sslgh.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


@recipe_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with sslgh."""
    from sslgh.engine.exit_codes import run_command
    from sslgh.recipe import load_recipe
    from sslgh.recipe.bundled import recipe_files

    def work() -> None:
        for path in recipe_files():
            recipe = load_recipe(path)
            gh = "plain" if recipe.harmonize is None else f"+GH {recipe.harmonize.population}"
            name = "" if recipe.method is None else recipe.method.name
            name += "" if recipe.boost is None else " boosted"
            if recipe.finetune is not None:
                name, gh = recipe.finetune.objective, "supervised"
            typer.echo(f"{path!s:<45} {name:<15} {gh:<15} {recipe.train.epochs} epochs")

    raise typer.Exit(run_command(work))


@app.command()
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", help="The run that is meant, and overrides."
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where runs are written; the recipe's, or runs.")
    ] = None,
) -> None:
    """Check this machine, and what a run needs of it; exit 1 if a fault is found, with its remedy."""
    from sslgh.doctor.check_result import format_result
    from sslgh.doctor.software import software, unusable

    failed: list[str] = []

    def print_stderr(findings: "Iterable[CheckResult]") -> None:
        for finding in findings:
            typer.echo(format_result(finding))
            failed.append(finding.subject if finding.state == "FAIL" else "")

    def work() -> None:
        from sslgh.doctor.run_checks import run_checks

        print_stderr(run_checks(_load_checked(words)[0] if words else None, run_dir))

    print_stderr(software())
    if unusable(failed):  # nothing else can be imported then
        raise typer.Exit(1)
    from sslgh.engine.exit_codes import run_command

    code = run_command(work)
    raise typer.Exit(code or int(any(failed)))


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and overrides; only an override has an equals sign and is no file."""
    overrides = [word for word in words if "=" in word and not _is_file(word)]
    return [word for word in words if word not in overrides], overrides


def _is_file(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # longer than a name may be
        return False


def _load(words: Sequence[str]) -> "list[Recipe]":
    from sslgh.recipe import RecipeError, load_recipe
    from sslgh.recipe.bundled import find_recipe

    names, overrides = _split(words)
    if not names:
        raise RecipeError("no recipe given; sslgh recipe list names those that exist")
    recipes = [load_recipe(find_recipe(name), overrides) for name in names]
    if len({recipe.directory for recipe in recipes}) < len(recipes):
        raise RecipeError("two of the recipes share a run directory; leave run_dir out")
    return recipes


def _load_checked(words: Sequence[str]) -> "list[Recipe]":
    """Recipes whose names of objectives and protocols are known, before any data are read."""
    from sslgh.engine.build import check_objective
    from sslgh.evaluation import plan_probes

    recipes = _load(words)
    for recipe in recipes:
        check_objective(recipe)
        plan_probes(recipe.probe)
    return recipes


def _each_recipe(
    words: Sequence[str],
    work: "Callable[[Recipe], Row]",
    *,
    record: bool = True,
    details: bool = False,
) -> None:
    from sslgh.engine.exit_codes import run_command

    recipes: list[Recipe] = []
    rows: list[Row] = []
    code = run_command(lambda: recipes.extend(_load_checked(words)))
    for recipe in recipes:
        code = code or run_command(
            lambda recipe=recipe: rows.append(work(recipe)),  # type: ignore[misc]
            recipe if record else None,
        )
    _leave(rows, code, details=details)


def _leave(rows: "Sequence[Row]", code: int, *, details: bool) -> None:
    from sslgh.engine.exit_codes import is_main
    from sslgh.engine.launch import shutdown_distributed
    from sslgh.evaluation import class_table, comparison_table, details_table
    from sslgh.recipe.printable import printable

    rows = [row for row in rows if row[1]]
    if rows and is_main():
        typer.echo("\n" + comparison_table(rows))
        if details:
            typer.echo("\n" + details_table(rows))
            for name, results in rows:
                for result in results:
                    typer.echo(f"\n{printable(name)}\n{class_table(result)}")
    shutdown_distributed()
    raise typer.Exit(code)


def _pretrain(recipe: "Recipe") -> "Row":
    from sslgh.engine.launch import init_accelerator
    from sslgh.engine.pretraining import pretrain as pretrain_recipe

    directory = pretrain_recipe(recipe, init_accelerator(recipe.train.processes))
    return directory.name, []


def _try(recipe: "Recipe") -> "Row":
    from sslgh.engine.finetuning import dry_run_finetuning
    from sslgh.engine.launch import init_accelerator
    from sslgh.engine.pretraining import dry_run_pretraining

    attempt = dry_run_pretraining if recipe.finetune is None else dry_run_finetuning
    attempt(recipe, init_accelerator(recipe.train.processes))
    return recipe.name, []


def _finetune(recipe: "Recipe") -> "Row":
    from sslgh.engine.finetuning import finetune as finetune_recipe
    from sslgh.engine.launch import init_accelerator
    from sslgh.evaluation import check_probes

    check_probes(recipe.data, recipe.probe, recipe.directory)
    finetune_recipe(recipe, init_accelerator(recipe.train.processes))
    return _probe_run(recipe)


def _pretrain_and_probe(recipe: "Recipe") -> "Row":
    from sslgh.evaluation import check_probes

    if recipe.finetune is not None:
        return _finetune(recipe)
    check_probes(recipe.data, recipe.probe, recipe.directory)
    _pretrain(recipe)
    return _probe_run(recipe)


def _probe_run(recipe: "Recipe") -> "Row":
    from sslgh.engine.launch import init_accelerator
    from sslgh.evaluation import evaluate_run, probe_backbone
    from sslgh.models import load_backbone

    judged = [] if recipe.finetune is None else evaluate_run(recipe, init_accelerator())
    if not recipe.probe and recipe.finetune is None:
        typer.echo(f"{recipe.directory}: {NO_PROBE}")
        return recipe.directory.name, []
    backbone, _ = load_backbone(recipe.directory)
    accelerator = init_accelerator()
    results = probe_backbone(backbone, recipe, directory=recipe.directory, accelerator=accelerator)
    return recipe.directory.name, [*judged, *results]


def _probe_target(
    target: str, recipe_name: str | None, overrides: list[str], out: Path, pretrained: bool
) -> "Row":
    from sslgh.engine.launch import init_accelerator
    from sslgh.evaluation import probe_backbone
    from sslgh.models import build_backbone
    from sslgh.recipe import RecipeError, load_recipe

    if not target.startswith(("timm:", "torchvision:")):
        directory = Path(target)
        if not _is_file(f"{target}/recipe.yaml"):
            raise RecipeError(f"{target} is no run directory: it holds no recipe.yaml")
        return _probe_run(
            load_recipe(directory / "recipe.yaml", [*overrides, f"run_dir={directory}"])
        )
    if recipe_name is None:
        raise RecipeError(f"{target} needs data to be judged by; add --recipe RECIPE")
    recipe = _load([recipe_name, *overrides])[0]
    if not recipe.probe:
        typer.echo(f"{target}: {NO_PROBE}")
    size = recipe.data.size
    backbone = build_backbone(target, image_size=size, pretrained=pretrained)
    name = _folder_name(target) + ("" if pretrained else "-random")
    directory = _place_of_results(out, name)
    results = probe_backbone(backbone, recipe, directory=directory, accelerator=init_accelerator())
    return name, results


def _probe_file(file: Path, recipe_name: str | None, overrides: list[str], out: Path) -> "Row":
    from sslgh.evaluation import load_feature_file, probe_features
    from sslgh.recipe import make_recipe
    from sslgh.recipe.loading import apply_overrides

    if recipe_name is not None:
        probes = _load([recipe_name, *overrides])[0].probe
    else:
        usual = [{"protocol": "longtail"}, {"protocol": "knn"}]
        settings = {"name": "features", "data": {"source": "arrays"}, "probe": usual}
        settings |= {"finetune": {}}  # a recipe says what is trained; here it is not read
        probes = make_recipe(apply_overrides(settings, overrides)).probe
    if not probes:
        typer.echo(f"{file}: {NO_PROBE}")
        return file.stem, []
    directory = _place_of_results(out, _folder_name(file.stem))
    return file.stem, probe_features(*load_feature_file(file), probes, directory=directory)


def _folder_name(name: str) -> str:
    """A name that is one folder: ``...npz`` has the stem ``..``, and a backbone's has a colon."""
    return name.replace(":", "-").replace("/", "-").strip(".") or "features"


def _place_of_results(out: Path, name: str) -> Path:
    """The folder of the results of what is no run; a run keeps its own."""
    from sslgh.recipe import RecipeError

    if (out / name / "recipe.yaml").exists():
        raise RecipeError(
            f"{out / name} is a run, whose results would be lost; choose another --out"
        )
    return out / name
