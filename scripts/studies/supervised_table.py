r"""Train every variant of a supervised recipe with several seeds and print one table.

    .venv/bin/python scripts/studies/supervised_table.py recipes/cifar10-lt/small-supervised.yaml \
        --out runs/supervised data.source=arrays data.root=DIR

A run that is done is not repeated, one that was stopped resumes: the command can be given again.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from sslgh.engine.run_dir import read_status
from sslgh.evaluation import Result, read_results
from sslgh.evaluation.results import Spread
from sslgh.functional.groups import GROUPS

# Objective and what else is overridden. ELM's E0 is la, its E5 is bcl (facts of the design).
VARIANTS = {
    "ce": "ce",
    "la": "la",
    "elm (margin by prior ratio, E2)": "elm",
    "elm-contrast (no margin, E1)": "elm-contrast",
    "elm-hinge (E3)": "elm-hinge",
    "elm-pull (E4)": "elm-pull",
    "bcl": "bcl",
    "rcl (gamma 1, scale 1)": "rcl",
    "rcl (gamma 0.5, scale 1)": "rcl finetune.gamma=0.5",
    "rcl (gamma 1, scale 1.4: T 0.05)": "rcl finetune.scale=1.41421356",
    "bcl (T 0.05)": "bcl finetune.temperature=0.05",
}
MAIN = ("ce", "la", "elm (margin by prior ratio, E2)", "bcl", "rcl (gamma 1, scale 1)")


def main() -> int:
    """Train, then print; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, default=Path("runs/supervised"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--main-only", action="store_true", help="leave the ablations out")
    options = parser.parse_intermixed_args()
    names = list(MAIN if options.main_only else VARIANTS)
    # Seed by seed, so that a run of the script that is cut short holds whole comparisons.
    todo = [(name, seed) for seed in range(options.seeds) for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda one: train(options, *one), todo))
    print(table(options, names))
    return max(codes)


def directory(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Run directory of a variant and seed."""
    slug = "-".join("".join(c if c.isalnum() or c == "." else " " for c in name).split())
    return Path(options.out) / f"{slug}-{seed}"


def train(options: argparse.Namespace, name: str, seed: int) -> int:
    """One run in a process of its own."""
    objective, *extra = VARIANTS[name].split()
    folder = directory(options, name, seed)
    if read_status(folder).get("state") == "done":
        return 0
    command = [sys.executable, "-m", "sslgh", "finetune", str(options.recipe)]
    words = [f"finetune.objective={objective}", *extra, *options.overrides]
    words += [f"seed={seed}", f"run_dir={folder}", f"name={folder.name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + words,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(
        f"{folder.name}: {'done' if done.returncode == 0 else done.stderr[-400:]}", file=sys.stderr
    )
    return done.returncode


def table(options: argparse.Namespace, names: list[str]) -> str:
    """Markdown: a line for each variant (and ce adjusted post hoc), mean±std over the seeds."""
    heads = [
        "objective",
        *GROUPS,
        "average",
        "balanced error",
        "tightness of few (test)",
        "seconds",
    ]
    lines = [" | ".join(heads), "|".join("---" for _ in heads)]
    for name in names:
        folders = [directory(options, name, seed) for seed in range(options.seeds)]
        runs = [(folder, supervised(folder)) for folder in folders]
        known = [(folder, result) for folder, result in runs if result is not None]
        if not known:
            continue
        seconds = mean(read_status(folder)["seconds"] for folder, _ in known)
        for objective in known[0][1].scores:
            label = name if objective != "la-posthoc" else "ce, adjusted post hoc"
            cells = row([result for _, result in known], objective)
            lines.append(" | ".join([label, *cells, f"{seconds:.0f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def supervised(folder: Path) -> Result | None:
    """The result of a run, if it is done."""
    found = [result for result in read_results(folder) if result.protocol == "supervised"]
    return found[0] if found else None


def row(results: list[Result], objective: str) -> list[str]:
    """Percent by thirds of the classes, over runs of one seed each; tightness as it is."""
    metrics = [result.scores[objective].metrics["thirds"] for result in results]
    cells = []
    for column in (*GROUPS, "average", "balanced_error"):
        values = [spread.mean for m in metrics if (spread := m[column]) is not None]
        cells.append(percent(Spread.over(values)))
    few = [result.tightness["test"]["thirds"]["few"] for result in results]
    return [*cells, f"{mean(value for value in few if value is not None):.2f}"]


def percent(spread: Spread | None) -> str:
    """Mean and standard deviation over the seeds (ddof 1)."""
    if spread is None:
        return "-"
    return f"{100 * spread.mean:.1f}" + ("" if spread.std is None else f"±{100 * spread.std:.1f}")


if __name__ == "__main__":
    sys.exit(main())
