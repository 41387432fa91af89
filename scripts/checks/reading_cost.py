"""Measure what a reader of a run must read: the files, functions and lines that it enters.

    python scripts/checks/reading_cost.py
    python scripts/checks/reading_cost.py --only pretrain --by-file
    python scripts/checks/reading_cost.py --report --checkout FOLDER

Three commands are profiled with `sys.setprofile`, in all threads of their process: `pretrain` with
SimCLR on digits (2 epochs), `run` with SimCLR+GH and one LA probe (4 epochs, GH from the third), and
`probe` of the run before. A function counts if it is a `def` of package sslgh that is called between
the start and the end of the command, imports included. It counts with all its lines as they stand
in the source: decorators, signature, docstring, comments, blank lines. A nested function counts by
itself too; lambdas, comprehensions, class bodies and module level do not count. A file counts if one
of its functions does. On dd31d59 this gives 68 files, 312 functions, 4,051 lines for `pretrain`,
50, 196, 2,654 for `probe` and 108, 512, 7,068 for `run`.

Also counted: the lines of `train_step` and `Pretraining`, the Python files of the package and of
`engine/` with its subfolders, and the recipe lines (stripped, neither blank nor comments, without
recipes/accelerate) that stand in another recipe too: 788 of 908 on dd31d59.

The exit code is 1 if a limit of the redesign is passed, unless --report is given.
"""

import argparse
import ast
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
DIGITS = "recipes/digits-lt"
SHORT = "optim.warmup_epochs=1"
ONE_PROBE = "probe=[{protocol: longtail, objectives: [la]}]"
# The run to probe has to come before its probe.
COMMANDS = {
    "pretrain": ("pretrain", f"{DIGITS}/simclr.yaml", "train.epochs=2", SHORT, "run_dir={}/plain"),
    "run": (
        *("run", f"{DIGITS}/simclr-gh.yaml", "train.epochs=4", SHORT, "harmonize.warmup_epochs=2"),
        *("run_dir={}/gh", ONE_PROBE),
    ),
    "probe": ("probe", "{}/gh"),
}
# (files, lines) of a command; lines; files.
COMMAND_LIMITS = {"pretrain": (40, 2400), "probe": (30, 1700)}
STEP_LIMIT, PACKAGE_LIMIT, ENGINE_LIMIT = 150, 160, 26


class Function(NamedTuple):
    """A function of the package: its file, relative to the package, and its first and last line."""

    file: str
    name: str
    first: int
    last: int

    @property
    def lines(self) -> int:
        """Number of its lines."""
        return self.last - self.first + 1


def main() -> int:
    """Measure, print, compare with the limits; return an exit code."""
    if len(sys.argv) > 1 and sys.argv[1] == "--profiled":
        return profiled(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    options = _options()
    checkout = options.checkout.resolve()
    package = checkout / "sslgh"
    chosen = [name for name in COMMANDS if options.only is None or name in options.only]
    exceeded = []
    for name, functions in measured(checkout, chosen):
        print(summary(name, functions), flush=True)
        if options.by_file:
            print("\n".join(by_file(functions)))
        if options.by_function:
            print("\n".join(by_function(functions)))
        exceeded += too_much(name, functions)
    step = step_lines(package)
    print(f"train_step and Pretraining: {'not there yet' if step is None else f'{step} lines'}")
    sizes = len(python_files(package)), len(python_files(package / "engine"))
    print(f"package: {sizes[0]} files, {sizes[1]} of them in engine/")
    print(recipe_line(checkout / "recipes"))
    exceeded += too_large(step, *sizes)
    for sentence in exceeded:
        print(sentence, file=sys.stderr)
    return 0 if options.report or not exceeded else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(COMMANDS), help="some commands")
    parser.add_argument("--by-file", action="store_true", help="list the files, longest first")
    parser.add_argument("--by-function", action="store_true", help="list the functions as well")
    parser.add_argument("--report", action="store_true", help="exit with 0 whatever the figures")
    parser.add_argument(
        "--checkout", type=Path, default=REPOSITORY, metavar="DIR", help="tree to measure"
    )
    return parser.parse_args()


# Profiling


def profiled(output: Path, package: Path, words: Sequence[str]) -> int:
    """Run ``sslgh`` in this process and write the code that it enters as JSON.

    Args:
        output: File to write: a list of (path, first line, name).
        package: Folder whose code is recorded.
        words: Command line after ``sslgh``.

    Returns:
        The exit code of the command.
    """
    prefix = f"{package}{os.sep}"
    entered: set[tuple[str, int, str]] = set()

    def hook(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # A template that is compiled has a name in the package too.
        inside = code.co_filename.startswith(prefix) and code.co_filename.endswith(".py")
        if event == "call" and inside:
            entered.add((code.co_filename, code.co_firstlineno, code.co_name))

    sys.argv = ["sslgh", *words]
    sys.path.insert(0, str(package.parent))
    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        runpy.run_module("sslgh", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    output.write_text(json.dumps(sorted(entered)))
    return code


def measured(checkout: Path, names: Sequence[str]) -> Iterator[tuple[str, list[Function]]]:
    """Each command with the functions that it enters.

    Args:
        checkout: Tree to measure.
        names: Commands; the run that `probe` needs is made even if it is not among them.
    """
    with tempfile.TemporaryDirectory(prefix="reading-cost-") as folder:
        for name, words in COMMANDS.items():
            if name not in names and not (name == "run" and "probe" in names):
                continue
            functions = entered(checkout, [word.replace("{}", folder) for word in words], folder)
            if name in names:
                yield name, functions


def entered(checkout: Path, words: Sequence[str], folder: str) -> list[Function]:
    """Functions of the package that a command enters."""
    output, package = Path(folder) / "entered.json", checkout / "sslgh"
    done = subprocess.run(
        [sys.executable, __file__, "--profiled", str(output), str(package), *words],
        cwd=checkout,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"sslgh {' '.join(words)} failed: {done.stderr.strip()[-500:]}")
    found = [
        functions_of(Path(path), package).get((first, name))
        for path, first, name in json.loads(output.read_text())
    ]
    functions = [function for function in found if function is not None]
    if not functions:
        sys.exit(f"sslgh {' '.join(words)} entered no function of {package}")
    return functions


@cache
def functions_of(path: Path, package: Path) -> dict[tuple[int, str], Function]:
    """Functions of a file by first line, as its code objects have it, and name."""
    file, found = str(path.relative_to(package)), {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = Function(file, node.name, first_line(node), node.end_lineno or 0)
            found[function.first, node.name] = function
    return found


def first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """First line of a definition, decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


# Printing


def totals(functions: Sequence[Function]) -> tuple[int, int]:
    """Files and lines."""
    return len({each.file for each in functions}), sum(each.lines for each in functions)


def summary(name: str, functions: Sequence[Function]) -> str:
    """One line per command, and one with the lines of its largest folders."""
    files, lines = totals(functions)
    folders: Counter[str] = Counter()
    for function in functions:
        folder, slash, _ = function.file.partition("/")
        folders[folder if slash else "."] += function.lines
    parts = ", ".join(f"{folder} {count:,}" for folder, count in folders.most_common())
    return f"{name}: {files} files / {len(functions)} functions / {lines:,} lines\n  lines by folder: {parts}"


def by_file(functions: Sequence[Function]) -> list[str]:
    """One line per file: its entered lines, its entered functions."""
    groups: dict[str, list[Function]] = defaultdict(list)
    for function in functions:
        groups[function.file].append(function)
    rows = sorted((-totals(group)[1], file, len(group)) for file, group in groups.items())
    return [f"  {-lines:5,} lines {count:3} functions  {file}" for lines, file, count in rows]


def by_function(functions: Sequence[Function]) -> list[str]:
    """One line per function."""
    rows = sorted(functions, key=lambda each: (-each.lines, each.file, each.first))
    return [f"  {each.lines:5,} lines  {each.file}:{each.first} {each.name}" for each in rows]


def recipe_line(folder: Path) -> str:
    """How many lines of the recipes stand in another recipe too."""
    files = [path for path in sorted(folder.rglob("*.yaml")) if path.parent.name != "accelerate"]
    recipes = [_settings(path) for path in files]
    occurrences = Counter(line for lines in recipes for line in set(lines))
    total = sum(len(lines) for lines in recipes)
    repeated = sum(occurrences[line] > 1 for lines in recipes for line in lines)
    share = repeated / total if total else 0
    return f"recipes: {repeated} of {total} lines in {len(files)} files ({share:.0%}) stand in another recipe too"


def _settings(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


# Sizes and limits


def python_files(folder: Path) -> list[Path]:
    """Python files of a folder and its subfolders."""
    return sorted(folder.rglob("*.py"))


def step_lines(package: Path) -> int | None:
    """Lines of ``train_step`` and ``Pretraining`` together; None if one of them does not exist."""
    places = {"engine/trainer.py": "train_step", "engine/pretraining.py": "Pretraining"}
    total = 0
    for file, name in places.items():
        path = package / file
        body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        ]
        if not found:
            return None
        total += (found[0].end_lineno or 0) - first_line(found[0]) + 1
    return total


def too_much(name: str, functions: Sequence[Function]) -> list[str]:
    """A sentence for each limit that a command passes."""
    if name not in COMMAND_LIMITS:
        return []
    pairs = zip(totals(functions), COMMAND_LIMITS[name], ("files", "lines"), strict=True)
    return [
        f"{name} enters {found:,} {kind}, more than the limit of {limit:,}"
        for found, limit, kind in pairs
        if found > limit
    ]


def too_large(step: int | None, package: int, engine: int) -> list[str]:
    """A sentence for each limit that the sources pass."""
    found = []
    if step is None:
        found.append(
            "engine/trainer.py needs train_step, and engine/pretraining.py needs Pretraining"
        )
    elif step > STEP_LIMIT:
        found.append(f"train_step and Pretraining have {step} lines, more than {STEP_LIMIT}")
    if package > PACKAGE_LIMIT:
        found.append(f"the package has {package} files, more than {PACKAGE_LIMIT}")
    if engine > ENGINE_LIMIT:
        found.append(f"engine/ has {engine} files, more than {ENGINE_LIMIT}")
    return found


if __name__ == "__main__":
    sys.exit(main())
