"""The command line: parse, call, print.

Imports stand inside the functions, so that ``sslgh --help`` does not wait for torch.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslgh.cli_photos import photos_app

if TYPE_CHECKING:
    from sslgh.doctor.check_result import CheckResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain image backbones without labels on long-tailed data; train and evaluate classifiers.",
)
recipe_app = typer.Typer(no_args_is_help=True, help="Show, list and describe recipes.")
app.add_typer(recipe_app, name="recipe")
app.add_typer(photos_app)  # without a name: its commands are those of sslgh

Words = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, and overrides of all."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``sslgh`` and ``python -m sslgh``."""
    app(args=None if arguments is None else list(arguments), prog_name="sslgh")


DryRun = Annotated[
    bool, typer.Option(help="Build everything, take one step, write nothing.", show_default=False)
]

GH = Annotated[
    bool,
    typer.Option(
        "--gh",
        help="Add Geometric Harmonization, with the settings of the folder's simclr-gh recipe; the "
        "name of the run gets -gh.",
        show_default=False,
    ),
]

Details = Annotated[
    bool,
    typer.Option("--details", help="Also print further metrics, and the accuracy of every class."),
]


@app.command()
def pretrain(words: Words, dry_run: DryRun = False, gh: GH = False) -> None:
    """Pretrain a backbone, or resume a stopped run."""
    from sslgh import commands

    work = commands.dry_run if dry_run else commands.pretrain
    raise typer.Exit(commands.each_recipe(words, work, record=not dry_run, gh=gh))


@app.command()
def run(words: Words, details: Details = False, gh: GH = False) -> None:
    """Pretrain, probe and compare: the main job in one command."""
    from sslgh import commands

    raise typer.Exit(commands.each_recipe(words, commands.run, details=details, gh=gh))


@app.command()
def finetune(words: Words, dry_run: DryRun = False, details: Details = False) -> None:
    """Train on long-tailed labels, from scratch or from model.init=RUN, and evaluate the result."""
    from sslgh import commands

    work = commands.dry_run if dry_run else commands.finetune
    raise typer.Exit(commands.each_recipe(words, work, record=not dry_run, details=details))


@app.command()
def probe(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|timm:NAME|torchvision:NAME|hf-hub:NAME|package:NAME|FILE]... [KEY=VALUE]...",
            help="Run directories or backbones, and overrides such as 'probe=[{protocol: knn}]'.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose data and probes evaluate a backbone or file.")
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
    from sslgh import commands

    code = commands.probe(
        words or [], features, recipe=recipe, out=out, pretrained=pretrained, details=details
    )
    raise typer.Exit(code)


@app.command()
def baselines(
    words: Words,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Pretrained weights, as model.init; default: the recipe's, else package:efficientnet-lite0."
        ),
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Only the rows that train no network.")
    ] = False,
) -> None:
    """Compare random and pretrained weights, own runs and adapters on the recipe's images, in one table."""
    from sslgh.studies.baselines import run_baselines

    raise typer.Exit(run_baselines(words, weights, frozen=frozen))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    to: Annotated[
        str, typer.Option("--to", help="Any of timm, torchvision, onnx, hf, with commas.")
    ] = "timm,onnx",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for one folder per target; default: RUN/export."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Leave the classifier of a finetuned run out.")
    ] = False,
) -> None:
    """Write the network for other libraries, reload it there, and print the lines that load it."""
    from sslgh.export.command import export_command

    raise typer.Exit(export_command(run, to, out, features=features))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, done or under way.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page; default: report.html in the first."),
    ] = None,
) -> None:
    """Write one page on runs: results by group of classes, curves with a sentence each, views."""
    from sslgh.report.report_command import report_command

    raise typer.Exit(report_command(runs, out))


@app.command()
def scan(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Any tree of images.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON.", show_default=False)
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Near duplicates and quality too, and their page, as look."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the report; default: FOLDER-look next to it."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the report, as for embed.")] = None,
) -> None:
    """Decode every image of a folder and name the broken ones; exit 1 if there are any."""
    from sslgh.engine.exit_codes import FAILED, run_command
    from sslgh.scan.report import scan_record, scan_text
    from sslgh.scan.scan import scan_folder

    faulty = []

    def show(text: str) -> None:
        # A terminal without UTF-8 shows letters it lacks as escapes.
        encoding = sys.stdout.encoding or "utf-8"
        typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))

    def work() -> None:
        if report:
            from sslgh.report.scan_command import check_needs, likeness

            check_needs(folder, out)
        found = scan_folder(folder)
        faulty.append(not found.is_sound)
        record = scan_record(found)
        if not as_json:
            show(scan_text(found))
        if report:
            more = likeness(folder, out, model)
            record |= more.record
            if not as_json:
                show(more.text)
        if as_json:
            show(json.dumps(record, indent=2))

    raise typer.Exit(run_command(work) or (FAILED if any(faulty) else 0))


def _print(lines: Callable[[], Iterable[str]]) -> None:
    """Print lines, or why there are none and exit 2: `run_command` would wait for torch."""
    from sslgh.recipe.errors import RecipeError

    try:
        for line in lines():
            typer.echo(line)
    except RecipeError as error:
        typer.echo(f"sslgh: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def study(
    words: Annotated[
        list[str],
        typer.Argument(metavar="FILE [KEY=VALUE]...", help="A study, and where its data are."),
    ],
    table: Annotated[
        bool, typer.Option("--table", help="Only print the table of the results that exist.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Only plot the paired differences, as .svg.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: FILE without its suffix.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder for the run directories; default: runs/NAME.")
    ] = None,
    block: Annotated[
        str | None, typer.Option(help="Numbers of the blocks to run, such as 0,3; default: all.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after so many minutes, to be resumed (exit code 75)."),
    ] = None,
) -> None:
    """Run arms that branch from one warm-up per block, or resume, and compare them within blocks."""
    from sslgh.studies.command import StudyOptions, run_or_print

    options = StudyOptions(table, plot, out, runs, block, minutes)
    raise typer.Exit(run_or_print(words, options))


@recipe_app.command("show")
def show(words: Words, gh: GH = False) -> None:
    """Print the full config, every default written out."""
    from sslgh.recipe.loading import recipe_text
    from sslgh.recipe.named import load_recipes

    _print(lambda: (recipe_text(recipe).rstrip("\n") for recipe in load_recipes(words, gh=gh)))


@recipe_app.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from sslgh.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


@recipe_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with sslgh; those that say --gh take that option."""
    from sslgh.recipe.named import recipe_lines

    _print(recipe_lines)


@app.command()
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="Recipe to check, and overrides."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for runs; default: the recipe's run_dir, or runs.")
    ] = None,
) -> None:
    """Check this machine and what a run needs; exit 1 if a check fails."""
    from sslgh.doctor.check_result import format_result
    from sslgh.doctor.software import software, unusable

    failed: list[str] = []

    def print_results(findings: "Iterable[CheckResult]") -> None:
        for finding in findings:
            typer.echo(format_result(finding))
            failed.append(finding.subject if finding.state == "FAIL" else "")

    def work() -> None:
        from sslgh.commands import load_checked
        from sslgh.doctor.run_checks import run_checks

        print_results(run_checks(load_checked(words)[0] if words else None, run_dir))

    print_results(software())
    if unusable(failed):  # nothing else can be imported then
        raise typer.Exit(1)
    from sslgh.engine.exit_codes import run_command

    code = run_command(work)
    raise typer.Exit(code or int(any(failed)))
