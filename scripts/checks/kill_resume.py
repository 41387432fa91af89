r"""Kill-resume test: kill runs with SIGKILL at random times, restart them until they finish, compare all bits.

    .venv/bin/python scripts/checks/kill_resume.py --runs 50 --out runs/kill-resume

Runs are small MoCo v2 + GH runs on long-tailed digits, one in five of them on two processes. A third of the kills
is aimed at the writing of a checkpoint; on two processes half of them hit one worker only. A run counts as alike
when backbone, last checkpoint and metrics are those of the unbroken run, the rates apart.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

from sslgh.engine.checkpoint_manager import list_checkpoints
from sslgh.engine.run_dir import read_status

RECIPE = {
    "name": "kill-resume",
    "data": {
        "source": "digits",
        "size": 8,
        "long_tail": {"imbalance": 10, "max_per_class": 30},
        "augment": {"flip": 0, "hue": 0, "saturation": 0, "grayscale": 0},
    },
    "model": {"width": 0.125, "projector": {"hidden": 32, "out": 16}},
    "method": {"name": "moco-v2", "queue": 64, "momentum": 0.9},
    "harmonize": {
        "vertices": 10,
        "visibility": 1,
        "warmup_epochs": 1,
        "ramp_epochs": 1,
        "refresh_every": 2,
    },
    "optim": {"lr": 0.1, "warmup_epochs": 1},
    "train": {"epochs": 24, "batch_size": 32, "checkpoint_every": 1, "log_every": 3},
}
# When a run is killed: while it starts, while it writes a checkpoint, or at any time in training.
# A "stop" is SIGTERM, which saves within an epoch; the others are SIGKILL.
KILL_AT = {"start": 1, "writing": 4, "training": 6, "stop": 2}
MOST_KILLS = 6
STEPS = 4  # of an epoch, after each of which there is a checkpoint


class Fate(NamedTuple):
    """What became of a run.

    Attributes:
        kills: How often it was killed.
        writing: How often while a checkpoint was being written.
        differing: What is not as in the unbroken run; empty where all is.
    """

    kills: int
    writing: int
    differing: list[str]


def main() -> int:
    """Soak, then print one line; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/kill-resume"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    recipe = options.out / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    reference = {size: unbroken(recipe, options.out, size) for size in (1, 2)}

    def fate(number: int) -> Fate:
        size = 2 if number % 5 == 4 else 1
        chance = random.Random(1_000 * options.seed + number)
        count = chance.randint(1, MOST_KILLS)
        plan = chance.choices(list(KILL_AT), list(KILL_AT.values()), k=count)
        found = kill_and_resume(
            recipe, options.out / f"run-{number}", reference[size], size, plan, chance
        )
        print(f"run {number}, {size} process(es): {found}", file=sys.stderr)
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        fates = list(pool.map(fate, range(options.runs)))
    alike = sum(not fate.differing for fate in fates)
    print(
        f"{len(fates)} runs, {sum(fate.kills for fate in fates)} kills, "
        f"{sum(fate.writing for fate in fates)} of them while a checkpoint was being written: "
        f"{alike} runs end with the bits of the unbroken run"
    )
    return 0 if alike == len(fates) else 1


def unbroken(recipe: Path, out: Path, size: int) -> Path:
    """Directory of an uninterrupted run."""
    directory = out / f"unbroken-{size}"
    child = start(recipe, directory, size)
    assert child.wait() == 0, f"see {directory}.log"
    return directory


def start(recipe: Path, directory: Path, size: int) -> subprocess.Popen[bytes]:
    """The command that a user gives, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    words = ["-m", "sslgh.pretrain", str(recipe), f"run_dir={directory}"]
    with directory.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *(launcher if size > 1 else []), *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def kill_and_resume(
    recipe: Path,
    directory: Path,
    reference: Path,
    size: int,
    plan: list[str],
    chance: random.Random,
) -> Fate:
    """Kill a run as planned, and restart it until it is done."""
    kills = writing = 0
    for _ in range(2 * len(plan) + 2):
        left = unfinished(directory)
        child = start(recipe, directory, size)
        if kills < len(plan) and wait_for(plan[kills], child, directory, chance, left):
            writing += bool(unfinished(directory) - left)
            if plan[kills] == "stop":
                child.terminate()
            else:
                kill(child, chance if size > 1 else None)
            kills += 1
        child.wait()
        if read_status(directory).get("state") == "done":
            return Fate(kills, writing, differences(directory, reference))
    return Fate(kills, writing, ["it never ends"])


def wait_for(
    when: str,
    child: subprocess.Popen[bytes],
    directory: Path,
    chance: random.Random,
    left: set[int],
) -> bool:
    """Wait until a run is to be killed; whether it still runs.

    What an earlier kill has ``left`` unfinished is not being written.
    """
    if when == "start":
        return still_running(child, chance.uniform(0.5, 4))
    wanted = last_step(directory) + STEPS * chance.randrange(4)
    while child.poll() is None:
        ready = last_step(directory) >= wanted
        if when == "writing" and ready and unfinished(directory) - left:
            return True
        if when in ("training", "stop") and last_step(directory) > wanted:
            return still_running(child, chance.uniform(0, 0.2))
        time.sleep(0.0005)
    return False


def still_running(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it does not end within a time."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def last_step(directory: Path) -> int:
    """Of the latest checkpoint; 0 where there is none."""
    found = (directory / "checkpoints").glob("step-*[0-9]")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def unfinished(directory: Path) -> set[int]:
    """Parts of checkpoints that are there, by inode: a later one of the same name is another."""
    found = set()
    for path in (directory / "checkpoints").glob(".step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def kill(child: subprocess.Popen[bytes], chance: random.Random | None) -> None:
    """SIGKILL to the whole group, or by ``chance`` to one of its workers."""
    try:
        if chance is not None and chance.random() < 1 / 2 and children(child.pid):
            os.kill(chance.choice(children(child.pid)), signal.SIGKILL)
        else:
            os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def children(parent: int) -> list[int]:
    """Direct children of a process."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in listed]


def differences(directory: Path, reference: Path) -> list[str]:
    """Names of what is not alike."""
    pairs = {"backbone": (directory / "backbone.safetensors", reference / "backbone.safetensors")}
    last = [list_checkpoints(folder / "checkpoints")[-1] for folder in (directory, reference)]
    for file in sorted(path.name for path in last[1].iterdir()):
        pairs[file] = (last[0] / file, last[1] / file)
    found = [
        name
        for name, (one, other) in pairs.items()
        if not one.is_file() or one.read_bytes() != other.read_bytes()
    ]
    return found + (["metrics"] if metrics(directory) != metrics(reference) else [])


def metrics(directory: Path) -> list[dict[str, object]]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
