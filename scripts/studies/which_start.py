r"""Which start: random and pretrained weights, own runs, adapters and a distilled student, over seeds, in one table.

    .venv/bin/python scripts/studies/which_start.py recipes/digits-lt/simclr.yaml --out runs/which-start \
        --seeds 3 data.size=32 train.epochs=30

Every seed is one call of `sslgh baselines`, and a run of the recipe with a teacher (EfficientNet-Lite0). What is done is
not repeated: the command can be given again. The student has as many epochs as the recipe; for equal time give it
fewer by --student-epochs.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from sslgh.cli import main as sslgh
from sslgh.evaluation import read_results
from sslgh.recipe import load_recipe
from sslgh.studies.baselines import baselines

TEACHER = "package:efficientnet-lite0"
PROBE = "probe=[{protocol: longtail, objectives: [ce, la, elm]}]"
STUDENT = "own run, distilled"


def main() -> int:
    """Run what is missing, then print means over seeds; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/which-start"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-size", type=int, default=64)
    parser.add_argument("--student-epochs", type=int)
    parser.add_argument("--frozen", action="store_true", help="only rows that train no network")
    options = parser.parse_intermixed_args()
    accuracies: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        directory = options.out / f"seed-{seed}"
        words = [f"seed={seed}", f"run_dir={directory}", PROBE, *options.overrides]
        _call("baselines", str(options.recipe), *words, *(["--frozen"] * options.frozen))
        rows = {
            row.name: row.recipe.directory for row in baselines(load_recipe(options.recipe, words))
        }
        if not options.frozen:
            rows[STUDENT] = directory.with_name(f"{directory.name}-distilled")
            _distill(options, words, rows[STUDENT])
        for name, place in rows.items():
            for key, accuracy in _accuracies(name, place):
                accuracies.setdefault(key, []).append(accuracy)
    for (name, objective), found in accuracies.items():
        spread = f" ± {100 * stdev(found):.1f}" if len(found) > 1 else ""
        print(f"{objective:12}{name:40}{100 * mean(found):.1f}{spread}  (seeds: {len(found)})")
    return 0


def _distill(options: argparse.Namespace, words: list[str], place: Path) -> None:
    """The recipe's student, with a teacher in place of its method."""
    method = f"{{name: distill, teacher: '{TEACHER}', teacher_size: {options.teacher_size}}}"
    epochs = [f"train.epochs={options.student_epochs}"] if options.student_epochs else []
    _call("run", str(options.recipe), *words, *epochs, f"method={method}", f"run_dir={place}")


def _call(*words: str) -> None:
    try:
        sslgh(words)
    except SystemExit as ended:
        if ended.code:
            raise


def _accuracies(name: str, place: Path) -> list[tuple[tuple[str, str], float]]:
    """Mean accuracy over classes of every objective, by row and objective."""
    found = []
    for result in read_results(place):
        row = name + (", last two layers" if "features" in result.settings else "")
        for objective, scores in result.scores.items():
            average = scores.metrics["thirds"]["average"]
            if average is not None:
                found.append(((row, objective), average.mean))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
