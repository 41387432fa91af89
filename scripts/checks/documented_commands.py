"""Run every command that the README, docs, recipe heads and script heads give, with its shortest settings.

    python scripts/checks/documented_commands.py                  # all, in an hour on two cores
    python scripts/checks/documented_commands.py --only digits-lt
    python scripts/checks/documented_commands.py --list

Each command runs in a folder of its own, which holds links to a copy of the repository, drawn images in place
of data sets, and a short pretraining run. `RULES` says what is shortened or replaced, and what is not run
and why. Exit code 1 if a command fails, if fewer than `FEWEST` are found, or if a rule fits no command.
"""

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).absolute().parents[2]
FEWEST = 110
"""Different commands of all places."""
SECONDS = 1800
PROGRAM = re.compile(
    r"(sslgh(?= )|accelerate launch|(\.venv/bin/)?python scripts/\S+|scripts/\S+\.sh|sbatch)\b"
)
MENTION = re.compile(r"sslgh( [a-z]+)?|(python )?scripts/\S+|sslgh/\S*")
"""Inline code that names a command and does not give one."""


class Command(NamedTuple):
    """A command as it is written, and where."""

    place: str
    text: str


class Rule(NamedTuple):
    """What is done to the commands that match a pattern; all rules that match apply, in order."""

    pattern: str
    add: str = ""
    """Words put at the end."""
    replace: tuple[tuple[str, str], ...] = ()
    """Regular expressions and what takes their place."""
    skip: str = ""
    """Why it is not run here."""


SHORT = (
    "train.epochs=1 optim.warmup_epochs=0 train.batch_size=16 data.workers=0 train.precision=fp32"
)
TAIL = "data.long_tail.max_per_class=12 data.long_tail.imbalance=4"
STUDY = """
name: short
question: Does it run?
warmup_epochs: 1
metrics: [knn.knn.average]
blocks: [{class_order: 0, seed: 0}]
arms:
  - {name: A0, about: SimCLR}
  - {name: A1, about: GH, settings: {harmonize: {warmup_epochs: 1, vertices: 4}}}
recipe:
  data: {source: digits, long_tail: {imbalance: 4, max_per_class: 12}}
  model: {width: 0.125}
  method: {name: simclr}
  optim: {warmup_epochs: 0}
  train: {epochs: 2, batch_size: 16}
  probe: [{protocol: knn}]
"""
TRAINING = r"^(sslgh|accelerate launch .*sslgh)[ .](run|pretrain|finetune)\b"
RULES = (
    Rule(r"finetune RECIPE", replace=((r"\bRECIPE\b", "recipes/digits-lt/supervised.yaml"),)),
    Rule(r"\bRECIPE\b", replace=((r"\bRECIPE\b", "recipes/digits-lt/simclr.yaml"),)),
    Rule(r"\bRUN\b", replace=((r"\bRUN\b", "runs/prepared"),)),
    Rule(
        r"\bNAME\b", replace=((r"timm:NAME --pretrained", "timm:resnet18"), (r"\bNAME\b", "name"))
    ),
    Rule(r"\b(PHOTOS|FOLDER)\b", replace=((r"\b(PHOTOS|FOLDER)\b", "photos"),)),
    Rule(r"FILE\.npz", replace=((r"FILE\.npz", "features.npz"),)),
    Rule(r"runs/digits-lt-simclr-gh", replace=((r"runs/digits-lt-simclr-gh", "runs/prepared"),)),
    # Launch settings of machines that are not here: two processes on the CPU instead.
    Rule(
        r"accelerate/(fsdp|gpu-1|gpu-8|nodes-2)",
        replace=(
            (r"accelerate/\S+\.yaml", "accelerate/cpu-2.yaml"),
            (r"train\.processes=\d+", "train.processes=2"),
            (r"--machine_rank \S+ --main_process_ip \S+ --main_process_port \S+ ", ""),
        ),
    ),
    Rule(r"^sbatch", skip="needs SLURM; tests/test_launch.py runs the script with a stand-in"),
    Rule(TRAINING, add=SHORT),
    Rule(TRAINING + r".*-gh\b", add="harmonize.warmup_epochs=0"),
    Rule(TRAINING + r".*ldam-drw", add="finetune.deferred_epoch=0"),
    Rule(
        TRAINING + r".*\bcifar10-lt/",
        add=f"data.source=arrays data.root=images-10 model.width=0.25 {TAIL}",
    ),
    Rule(
        TRAINING + r".*\bcifar100-lt/",
        add=f"data.source=arrays data.root=images-100 {TAIL}",
    ),
    Rule(TRAINING + r".*\bcifar100-lt/(?!lift)", add="model.width=0.25"),
    Rule(
        TRAINING + r".*\b(imagenet-lt|inaturalist)/",
        add="data.root=photos data.test_root=photos data.list=photos.txt data.test_list=photos.txt "
        "data.size=64 model.backbone=resnet18",
    ),
    Rule(
        TRAINING + r".*\bfolder/(?!lift)",
        add="data.size=32 model.backbone=resnet18 model.width=0.25",
    ),
    # Weights that need no network.
    Rule(
        TRAINING + r".*/lift",
        add="'model={init: package:efficientnet-lite0, adapter: {name: norm}}' data.size=64",
    ),
    Rule(
        r"(sslgh study|gpu_study\.py)\b",
        replace=((r"docs/studies/\S+\.yaml", "study.yaml"), (r"--state \S+", "--state state")),
    ),
    Rule(r"scripts/quickstart\.sh", add=SHORT),
    Rule(r"scripts/test\.sh", add="tests/test_docs.py"),
    Rule(r"kill_resume\.py", replace=((r"--runs \d+", "--runs 1"),)),
    Rule(r"inject_faults\.py", add="--places 1 --most 1"),
    Rule(r"bit_identity\.py", skip="takes an hour, and the history of the repository"),
    Rule(r"reading_cost\.py", add="--report"),
    Rule(r"reading_cost\.py .*--checkout", skip="needs a checkout of another commit"),
    Rule(r"fuzz_(images|recipes)\.py", add="--count 5"),
    Rule(
        r"plant_faults\.py",
        replace=((r"plant_faults\.py.*", "plant_faults.py purity of the wrong"),),
    ),
    Rule(r"bench/heads\.py", add="--quick"),
    Rule(r"bench/training\.py", add="--repeats 1 --step-repeats 1 --batch 8"),
    Rule(
        r"methods_table\.py",
        add=f"--only simclr {SHORT} {TAIL} data.source=arrays data.root=images-10",
    ),
    Rule(r"supervised_table\.py", add=f"--seeds 1 --main-only {SHORT} {TAIL} data.root=images-10"),
    Rule(r"which_start\.py", replace=((r"--seeds \d+", "--seeds 1 --frozen"),)),
    Rule(r"sslgh baselines", add=f"--frozen data.size=32 {SHORT}"),
    Rule(r"divide_and_contrast\.py", replace=((r"--clusters \d+", "--clusters 2"),), add=SHORT),
    Rule(r"studies/toy\.py", add="--seeds 1 --arms plain --out toy.json"),
    Rule(r"studies/visibility\.py", skip="needs images that are not here, and minutes to train"),
    Rule(
        r"^sslgh (classify|predict|select)\b",
        skip="needs labels; tests/explore/test_label_commands.py runs them",
    ),
    Rule(
        r"(select_photos|five_labels)\.py", skip="needs labeled photos, and minutes to embed them"
    ),
    Rule(r"documented_commands\.py", skip="this script"),
)


def documented_commands() -> list[Command]:
    """Every command of all places, a command that stands in several once."""
    found = [*_of_pages(), *_of_recipes(), *_of_scripts()]
    unique = {command.text: command for command in reversed(found)}
    return list(reversed(unique.values()))


def _of_pages() -> Iterator[Command]:
    pages = [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        REPOSITORY / "recipes/README.md",
    ]
    for page in sorted(page for page in pages if page.name != "CHANGELOG.md"):
        place, text = str(page.relative_to(REPOSITORY)), page.read_text()
        for block in re.findall(r"```(?:console|bash)\n(.*?)```", text, re.DOTALL):
            for line in _joined(block):
                if PROGRAM.match(line.removeprefix("$ ")):
                    yield Command(place, _bare(line.removeprefix("$ ")))
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", prose):
            if PROGRAM.match(code) and not MENTION.fullmatch(code):
                yield Command(place, _bare(code))


def _of_recipes() -> Iterator[Command]:
    studies = (REPOSITORY / "docs" / "studies").glob("*.yaml")
    for file in sorted([*(REPOSITORY / "recipes").rglob("*.yaml"), *studies]):
        head = "\n".join(
            line.removeprefix("#") for line in file.read_text().splitlines() if line.startswith("#")
        )
        yield from _indented(file, head)


def _of_scripts() -> Iterator[Command]:
    for file in sorted(
        [*(REPOSITORY / "scripts").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.py")]
    ):
        yield from _indented(file, ast.get_docstring(ast.parse(file.read_text())) or "")
    for file in sorted((REPOSITORY / "docs").rglob("*.sh")):
        for code in re.findall(r"^#.*\s{2,}(sbatch .*)$", file.read_text(), re.MULTILINE):
            yield Command(str(file.relative_to(REPOSITORY)), _bare(code))


def _indented(file: Path, text: str) -> Iterator[Command]:
    for line in _joined(text):
        if line.startswith("  ") and PROGRAM.match(line.strip()):
            yield Command(str(file.relative_to(REPOSITORY)), _bare(line))


def _joined(text: str) -> list[str]:
    """Lines, with those that end in a backslash joined to the next."""
    return re.sub(r" *\\\n *", " ", text).splitlines()


def _bare(line: str) -> str:
    """A command without its comment and its optional arguments."""
    words, optional = [], False
    for word in shlex.split(line, comments=True):
        optional = optional or word.startswith("[")
        if not optional:
            words.append(word.removesuffix("..."))
        if word.endswith("]"):
            optional = False
    return shlex.join(words)


def shortened(text: str) -> tuple[str, str]:
    """The command that is run in place of a documented one, and why it is not run, or ''."""
    skip = ""
    for rule in RULES:
        if re.search(rule.pattern, text):
            for pattern, new in rule.replace:
                text = re.sub(pattern, new, text, count=1)
            text = f"{text} {rule.add}".strip()
            skip = skip or rule.skip
    return text, skip


def prepare(folder: Path) -> None:
    """Copy the repository into ``folder`` and draw the data that commands need."""
    copy = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(REPOSITORY, folder, ignore=copy, dirs_exist_ok=True)
    environment = folder / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (environment / entry.name).symlink_to(entry)
    stamp = environment / ".sslgh-installed"
    stamp.unlink(missing_ok=True)
    stamp.touch()  # newer than the copied pyproject.toml: nothing is to be installed
    _draw(folder)
    _run(
        f"sslgh pretrain recipes/digits-lt/simclr-gh.yaml {SHORT} run_dir=runs/prepared", folder
    ).check_returncode()


def _draw(folder: Path) -> None:
    import numpy as np  # noqa: PLC0415  not needed for --list
    from PIL import Image  # noqa: PLC0415

    draws = np.random.default_rng(0)
    for classes in (10, 100):
        (folder / f"images-{classes}").mkdir()
        for split, each in (("train", 12), ("test", 2)):
            labels = np.repeat(np.arange(classes), each)
            images = draws.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
            np.savez(folder / f"images-{classes}" / f"{split}.npz", images=images, labels=labels)
    lines = []
    for number in range(120):
        file = folder / "photos" / f"kind-{number % 3}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Low frequencies, so that the files differ and are small.
        pixels = draws.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 80)).save(file)
        lines.append(f"{file.relative_to(folder / 'photos')} {number % 3}\n")
    (folder / "photos.txt").write_text("".join(lines))
    (folder / "study.yaml").write_text(STUDY)
    y = np.arange(60) % 3
    x = draws.normal(size=(60, 8)).astype(np.float32) + y[:, None]
    np.savez(
        folder / "features.npz", train_features=x, train_labels=y, test_features=x, test_labels=y
    )


def _run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, text=True, timeout=SECONDS, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run_alone(command: Command, copy: Path, folder: Path) -> bool:
    """Run one command in ``folder``, which shares all but ``runs`` with the copy; print how it went."""
    text, skip = shortened(command.text)
    if skip:
        print(f"not run  {command.text}  ({skip})", flush=True)
        return True
    folder.mkdir()
    for entry in copy.iterdir():
        if entry.name != "runs":
            (folder / entry.name).symlink_to(entry)
    shutil.copytree(copy / "runs", folder / "runs")
    begun = time.perf_counter()
    try:
        done = _run(text, folder)
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, output = -1, f"no end after {SECONDS} s"
    seconds = time.perf_counter() - begun
    print(
        f"{'ok' if code == 0 else 'FAILED':<8} {seconds:5.0f} s  {command.place}: {text}",
        flush=True,
    )
    if code != 0:
        print("\n".join(f"    {line}" for line in output.splitlines()[-15:]), flush=True)
    shutil.rmtree(folder)
    return code == 0


def stale_rules(commands: list[Command]) -> list[str]:
    """Patterns of the rules that change no command."""
    texts = [command.text for command in commands]
    return [
        rule.pattern for rule in RULES if not any(re.search(rule.pattern, text) for text in texts)
    ]


def main() -> int:
    """Run what was asked for; 0 if all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="commands in which this regular expression is found"
    )
    parser.add_argument("--list", action="store_true", help="print what would run")
    parser.add_argument("--jobs", type=int, default=2, help="commands at once")
    options = parser.parse_args()
    commands = documented_commands()
    print(f"{len(commands)} commands, at least {FEWEST} expected", flush=True)
    fine = len(commands) >= FEWEST and not stale_rules(commands)
    for pattern in stale_rules(commands):
        print(f"no command fits the rule {pattern}")
    chosen = [command for command in commands if re.search(options.only, command.text)]
    if options.list:
        for command in chosen:
            text, skip = shortened(command.text)
            print(f"{command.place}: {command.text}\n    {f'not run: {skip}' if skip else text}")
        return 0 if fine and chosen else 1
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        prepare(copy)
        with ThreadPoolExecutor(options.jobs) as pool:
            numbered = enumerate(chosen)
            results = list(
                pool.map(lambda c: run_alone(c[1], copy, Path(folder) / str(c[0])), numbered)
            )
    print(f"{sum(results)} of {len(results)} commands ran")
    return 0 if fine and results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
