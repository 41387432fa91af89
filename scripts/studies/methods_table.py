r"""Pretrain every method of a folder of recipes, plain and with GH, and print one table.

    .venv/bin/python scripts/studies/methods_table.py --out runs/methods data.root=DIR

The recipes are `small-*.yaml` of recipes/cifar10-lt; words `key=value` go to every run, so that all have one
budget. A run that is done is not repeated, one that was stopped resumes: the command can be given again.
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
from sslgh.recipe import load_recipe

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
    runs = [(file, gh) for file in chosen for gh in (False, True)]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda run: train(options, *run), runs))
    print(table(options, chosen))
    return max(codes)


def chosen_recipes(options: argparse.Namespace) -> list[Path]:
    """The recipes that pretrain without GH; each is also run with ``--gh``."""
    recipes = {file: load_recipe(file) for file in sorted(options.recipes.glob("small-*.yaml"))}
    wanted = set(filter(None, options.only.split(",")))
    return [
        file
        for file, recipe in recipes.items()
        if recipe.method is not None and recipe.harmonize is None
        if not wanted or recipe.method.name in wanted
    ]


def run_folder(options: argparse.Namespace, file: Path, gh: bool) -> Path:
    """Run directory of a recipe, plain or with GH."""
    folder: Path = options.out / (file.stem + ("-gh" if gh else ""))
    return folder


def train(options: argparse.Namespace, file: Path, gh: bool) -> int:
    """One run in a process of its own."""
    folder = run_folder(options, file, gh)
    words = [*(["--gh"] if gh else []), f"run_dir={folder}", PROBES, *options.overrides]
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


def table(options: argparse.Namespace, chosen: list[Path]) -> str:
    """Markdown: one line per run."""
    lines = [" | ".join(HEADS), "|".join("---" for _ in HEADS)]
    for file in chosen:
        plain_seconds = None
        for gh in (False, True):
            folder = run_folder(options, file, gh)
            results = {result.protocol: result for result in read_results(folder)}
            if not {"longtail", "knn"} <= results.keys():
                continue
            seconds = epoch_seconds(folder)
            costs = f"{seconds / plain_seconds - 1:+.0%}" if gh and plain_seconds else ""
            plain_seconds = plain_seconds if gh else seconds
            name = ("+ GH" if gh else file.stem.removeprefix("small-")) + note(folder)
            cells = [*scores(results["longtail"], "la"), scores(results["knn"], "knn")[3]]
            lines.append(" | ".join([name, *cells, f"{seconds:.1f}", costs]))
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
