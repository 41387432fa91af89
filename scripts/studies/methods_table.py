r"""Pretrain every method of a folder of recipes, plain and with GH, and print one table.

    .venv/bin/python scripts/studies/methods_table.py --out runs/methods data.root=DIR

The recipes are `small-*.yaml` of recipes/cifar10-lt; words `key=value` go to every run, so that all have one
budget. A run that is done is not repeated, one that was stopped goes on: the command can be given again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from sslgh.engine.run_dir import read_status
from sslgh.evaluation import Result, read_results
from sslgh.functional.groups import GROUPS
from sslgh.recipe import Recipe, load_recipe

HEADS = ("method", *GROUPS, "average", "std", "kNN", "s/epoch", "GH costs")
PROBES = "probe=[{protocol: longtail, objectives: [la], seeds: 3}, {protocol: knn}]"


def main() -> int:
    """Train, then print; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/cifar10-lt"))
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--only", default="", help="methods, separated by commas")
    options = parser.parse_intermixed_args()
    chosen = chosen_recipes(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda file: train(options, file), chosen))
    print(table(options, chosen))
    return max(codes)


def chosen_recipes(options: argparse.Namespace) -> dict[Path, Recipe]:
    """The recipes that pretrain, each plain one before its GH twin."""
    files = sorted(options.recipes.glob("small-*.yaml"), key=_plain_first)
    recipes = {file: load_recipe(file) for file in files}
    wanted = set(filter(None, options.only.split(",")))
    return {
        file: recipe
        for file, recipe in recipes.items()
        if recipe.method is not None and (not wanted or recipe.method.name in wanted)
    }


def _plain_first(file: Path) -> tuple[str, bool]:
    name = file.stem.removesuffix("-gh")
    return name, name != file.stem


def train(options: argparse.Namespace, file: Path) -> int:
    """One run in a process of its own."""
    folder = options.out / file.stem
    words = [f"run_dir={folder}", PROBES, *options.overrides]
    done = subprocess.run(
        [sys.executable, "-m", "sslgh", "run", str(file), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    state = f"done, {minutes(folder)}" if done.returncode == 0 else done.stderr[-400:]
    print(f"{folder.name}: {state}", file=sys.stderr)
    return done.returncode


def minutes(folder: Path) -> str:
    """How long the pretraining took."""
    return f"{read_status(folder)['seconds'] / 60:.1f} minutes"


def table(options: argparse.Namespace, chosen: dict[Path, Recipe]) -> str:
    """Markdown: a line for each run."""
    lines = [" | ".join(HEADS), "|".join("---" for _ in HEADS)]
    seconds: dict[Path, float] = {}
    for file in chosen:
        folder = options.out / file.stem
        results = {result.protocol: result for result in read_results(folder)}
        if not {"longtail", "knn"} <= results.keys():
            continue
        seconds[file] = epoch_seconds(folder)
        twin = file.with_stem(file.stem.removesuffix("-gh"))
        harmonized = twin != file
        costs = (
            f"{seconds[file] / seconds[twin] - 1:+.0%}" if twin in seconds and harmonized else ""
        )
        name = ("+ GH" if harmonized else file.stem.removeprefix("small-")) + note(folder)
        cells = [*scores(results["longtail"], "la"), scores(results["knn"], "knn")[3]]
        lines.append(" | ".join([name, *cells, f"{seconds[file]:.1f}", costs]))
    return "\n".join(f"| {line} |" for line in lines)


def scores(result: Result, objective: str) -> list[str]:
    """Percent by thirds of the classes: groups, average, standard deviation of the groups."""
    metrics = result.scores[objective].metrics["thirds"]
    columns = (*GROUPS, "average", "std")
    return [f"{100 * s.mean:.1f}" if (s := metrics[column]) else "-" for column in columns]


def epoch_seconds(folder: Path) -> float:
    """Seconds of an epoch, from the median rate of the logged steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    epochs = {line["epoch"] for line in lines if line["kind"] == "train"}
    steps = max(line["step"] for line in lines)
    recipe = load_recipe(folder / "recipe.yaml")
    return steps / len(epochs) * recipe.train.batch_size / median(rates)


def note(folder: Path) -> str:
    """A star where the run raised the alarm of a collapse."""
    metrics = (folder / "metrics.jsonl").read_text()
    return " (collapsed)" if '"kind": "alarm"' in metrics else ""


if __name__ == "__main__":
    sys.exit(main())
