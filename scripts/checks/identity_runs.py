"""Run the cases of `bit_identity.py` in a checkout, and keep the references of dd31d59."""

import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from identity_cases import CASES, COMMIT, COMMON, STEPS, CheckError, Job, Probe, Tree
from identity_comparison import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
# Versions that decide how numbers are rounded.
PACKAGES = {"accelerate", "faiss-cpu", "faiss-gpu", "numpy", "pillow", "scikit-learn", "scipy"}
PACKAGES |= {"torch", "torchvision"}


def train(tree: Tree, job: Job) -> str | None:
    """Run a job; return why it failed, or None."""
    directory = tree.runs / job.name
    directory.parent.mkdir(parents=True, exist_ok=True)
    _, failure = sslgh(tree, job.processes, [*words(tree, job), f"run_dir={directory}"], job.name)
    return failure


def words(tree: Tree, job: Job) -> list[str]:
    """Command line of a job, without its run directory."""
    case = job.case
    return [case.command, *(case.old if tree.is_old else case.new), *COMMON, *case.settings]


def run_probe(tree: Tree, probe: Probe) -> str | None:
    """Probe a run of the tree and keep what it prints; return why it failed, or None."""
    setting = probe.override(old=tree.is_old)
    command = ["probe", str(tree.runs / f"{probe.of}-1"), setting]
    printed, failure = sslgh(tree, 1, command, probe.name)
    if failure is None:
        (tree.runs / f"{probe.name}.txt").write_text(printed)
    return failure


def sslgh(tree: Tree, processes: int, command: Sequence[str], name: str) -> tuple[str, str | None]:
    """Run a command of a checkout; return what it prints, and why it failed or None.

    Args:
        tree: Checkout to run.
        processes: Number of processes.
        command: Command line after ``sslgh``.
        name: Name of the log file.
    """
    _check_import(tree.checkout)
    launcher = []
    if processes > 1:
        config = f"recipes/accelerate/cpu-{processes}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", config]
        launcher += ["--main_process_port", "0"]  # a free port: others train on this machine
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "sslgh", *command],
        cwd=tree.checkout,
        env=environment(tree.checkout),
        capture_output=True,
        text=True,
        check=False,
    )
    (tree.runs / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return done.stdout, None
    last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
    log = tree.runs / f"{name}.log"
    return done.stdout, f"exit code {done.returncode}: {last.strip()} (see {log})"


def environment(checkout: Path) -> dict[str, str]:
    """Environment of every run: this checkout, CPU only, one thread per process."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return os.environ | threads | {"PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""}


@cache
def _check_import(checkout: Path) -> None:
    """Make sure that Python imports the package of this checkout.

    Raises:
        CheckError: If it imports another one.
    """
    found = subprocess.run(
        [sys.executable, "-c", "import sslgh; print(sslgh.__file__)"],
        cwd=checkout,
        env=environment(checkout),
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        raise CheckError(f"{checkout} has no sslgh to import: {found.stderr.strip()[-200:]}")
    if not Path(found.stdout.strip()).is_relative_to(checkout):
        raise CheckError(f"{checkout} was to be imported, but Python took {found.stdout.strip()}")


def record(old: Tree, job: Job) -> None:
    """Make the reference of a job, unless this machine recorded it before.

    Raises:
        CheckError: If it cannot be made.
    """
    _record(old, job.name, words(old, job), partial(train, old, job), old.runs / job.name)


def record_probe(old: Tree, probe: Probe) -> None:
    """Make the reference of a probe, unless this machine recorded it before.

    Raises:
        CheckError: If it cannot be made.
    """
    case = next(case for case in CASES if case.name == probe.of)
    command = [*words(old, Job(case, 1)), probe.setting]
    # In the run directory: it goes when the run is recorded again.
    result = old.runs / f"{probe.of}-1" / "probe" / f"{probe.name}.json"
    _record(old, probe.name, command, partial(run_probe, old, probe), result)


def _record(
    old: Tree, name: str, command: list[str], work: Callable[[], str | None], result: Path
) -> None:
    stamp = old.runs / f"{name}.json"
    wanted = json.dumps({"commit": COMMIT, "command": command, "machine": machine()}, indent=1)
    if stamp.is_file() and stamp.read_text() == wanted and result.exists():
        return
    stamp.unlink(missing_ok=True)
    if result.is_dir():
        shutil.rmtree(result)
    check_out(old.checkout)
    failure = work()
    if failure is not None:
        raise CheckError(f"the reference {name} of {COMMIT} could not be recorded: {failure}")
    stamp.write_text(wanted)  # last: a reference that was interrupted has none


@cache
def machine() -> dict[str, str]:
    """What decides how numbers are rounded."""
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.is_file() else []
    installed = sorted(
        (package.name, package.version) for package in importlib.metadata.distributions()
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version for name, version in installed if name in PACKAGES},
    }


@cache
def check_out(folder: Path) -> None:
    """Put the sources of dd31d59 into a folder.

    Raises:
        CheckError: If this clone does not have them.
    """
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", COMMIT], capture_output=True, check=False
    )
    if archive.returncode != 0:
        raise CheckError(
            f"commit {COMMIT} is not in the clone {REPOSITORY}; fetch it with git fetch --unshallow, "
            "or name recorded runs of this machine with --reference"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def check_reference(run: Path) -> None:
    """Make sure that a reference tests what it should.

    Raises:
        CheckError: If it has another number of steps, or too few checkpoints.
    """
    lines = read_metrics(run / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    if len(steps) != STEPS:
        raise CheckError(f"{run} logged {len(steps)} steps, expected {STEPS}")
    if len(list((run / "checkpoints").glob("step-*[0-9]"))) < 2:
        raise CheckError(f"{run} holds fewer than 2 checkpoints")
