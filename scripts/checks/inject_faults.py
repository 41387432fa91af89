r"""Fault injection: damage checkpoints and fill disks, one fault at a time, and count what a run survives.

    .venv/bin/python scripts/checks/inject_faults.py --out runs/faults

Altered: each file of a checkpoint with one bit flipped at each of many places, cut at many lengths, or gone; the
checkpoint before must be found. Operations: every call by which a checkpoint or the logger touches the disk fails once
with each of several errors, in the middle of training; the run must end with the bits of an undisturbed one. Limits: the
command runs under file-size limits; it must fail in one sentence, keep its last good checkpoint and go on without them.
"""

import argparse
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from kill_resume import RECIPE, differences

from sslgh.engine import checkpoint
from sslgh.engine.checkpoint_manager import last_whole_checkpoint, list_checkpoints
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.recipe import Recipe, make_recipe

SETTINGS = RECIPE | {"train": RECIPE["train"] | {"epochs": 3, "log_every": 2, "keep_last": 1}}
ERRORS = (errno.ENOSPC, errno.ESTALE)
# What Python tells its audit hooks before it does it; a hook that raises is a call that fails.
AUDITED = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree"}
# TensorBoard's thread, the only one without a name, prints the error that ends it.
OF_TENSORBOARD = re.compile(r"Exception in thread Thread-\d+:\nTraceback")
LIMITS = (1, 4, 16, 64, 150, 200, 300)  # KiB


class Fault:
    """Makes the n-th disk operation under a folder fail, once or from then on."""

    def __init__(self) -> None:
        self.folder = ""
        self.countdown = self.number = 0
        self.lasting = self.happened = False
        sys.addaudithook(self._audit)

    @contextmanager
    def planted(self, folder: Path, countdown: int, number: int, *, lasting: bool) -> Any:
        """Within it the fault waits to happen."""
        self.countdown, self.number, self.lasting, self.happened = countdown, number, lasting, False
        self.folder = str(folder)
        try:
            yield
        finally:
            self.folder = ""

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or event not in AUDITED:
            return
        if event == "open" and not (
            isinstance(arguments[1], str) and set("wax") & set(arguments[1])
        ):
            return
        self.strike(str(arguments[0]))

    def strike(self, path: str) -> None:
        """Fail if it is time to."""
        if not self.folder or self.folder not in path:
            return
        self.countdown -= 1
        if self.countdown == 0 or (self.lasting and self.countdown < 0):
            self.happened = True
            raise OSError(self.number, os.strerror(self.number), path)


def struck(function: Callable[..., Any], fault: Fault, place: int) -> Callable[..., Any]:
    """A call of a library that is no Python code, failing like the rest."""

    def call(*arguments: Any) -> Any:
        target = arguments[place]
        fault.strike(str(getattr(target, "name", target)))
        return function(*arguments)

    return call


def main() -> int:
    """Try all faults, print the figures; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--places", type=int, default=200, help="bits and cuts tried in each file")
    parser.add_argument(
        "--most", type=int, help="limits and operations that are tried; default: all"
    )
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    intact = run(options.out / "intact")
    every = run(options.out / "every", keep_last=9)
    parts = {
        "altered files": lambda: altered(every, options.out / "altered", options.places),
        "file-size limits": lambda: limits(intact, options.out, options.most),
        "failing operations": lambda: operations(intact, options.out, options.most),
    }
    sound = True
    for name, part in parts.items():
        tried, survived, lost = part()
        print(f"{name}: {tried} tried, {survived} survived", *lost[:5], sep="\n  ", flush=True)
        sound = sound and tried == survived > 0
    return 0 if sound else 1


Outcome = tuple[int, int, list[str]]


def settings(directory: Path, **train: Any) -> Recipe:
    """The recipe of a run in a directory."""
    changed = {"run_dir": str(directory), "train": SETTINGS["train"] | train}
    return make_recipe(SETTINGS | changed)


def run(directory: Path, **train: Any) -> Path:
    """Train in this process, quietly."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return pretrain(settings(directory, **train), init_accelerator())


def altered(intact: Path, folder: Path, places: int) -> Outcome:
    """Bits flipped, files cut and files gone."""
    shutil.copytree(intact / "checkpoints", folder)
    before, after = list_checkpoints(folder)[-2:]
    tried = survived = 0
    lost: list[str] = []
    for file in sorted(after.iterdir()):
        content = file.read_bytes()
        step = max(1, len(content) // places)
        wrong: list[tuple[str, bytes | None]] = [("gone", None)]
        for place in range(0, len(content), step):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            wrong += [(f"bit at {place}", bytes(flipped)), (f"cut at {place}", content[:place])]
        for what, bytes_ in wrong:
            file.unlink(missing_ok=True)
            if bytes_ is not None:
                file.write_bytes(bytes_)
            tried += 1
            good = last_whole_checkpoint(folder)[0] == before
            survived += good
            lost += [] if good else [f"{file.name}: {what}"]
            if not after.exists():
                after.with_name(f"{after.name}.damaged").rename(after)
            file.write_bytes(content)
    return tried, survived, lost


def operations(intact: Path, out: Path, most: int | None) -> Outcome:
    """Every disk operation of a run's middle fails once, with each error, and once for good."""
    fault = Fault()
    for name, place in (("save_tensors", 1), ("_flush", 0)):
        setattr(checkpoint, name, struck(getattr(checkpoint, name), fault, place))
    tried = survived = 0
    lost: list[str] = []
    directory = out / "operation"
    for lasting, numbers in ((False, (ERRORS[0],)), (True, ERRORS)):
        for number in numbers:
            countdown, happened = 0, True
            while happened:
                countdown += 1
                reason = strike_once(fault, directory, countdown, number, lasting=lasting)
                happened = fault.happened
                if not happened or tried == most:
                    break
                tried += 1
                print(f"operation {tried}", end="\r", file=sys.stderr)
                reason = reason or "; ".join(differences(run(directory), intact))
                survived += not reason
                lost += (
                    [f"operation {countdown}, {os.strerror(number)}: {reason}"] if reason else []
                )
    return tried, survived, lost


def strike_once(
    fault: Fault, directory: Path, countdown: int, number: int, *, lasting: bool
) -> str:
    """Train over a fault from a good checkpoint on; what went wrong, or nothing.

    An error in the middle of training may end the run with an OSError, which is one sentence and exit code 1.
    """
    shutil.rmtree(directory, ignore_errors=True)
    begun(directory)
    good = last_whole_checkpoint(directory / "checkpoints")[0]
    assert good is not None
    checkpoints = directory / "checkpoints"
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            with fault.planted(directory, countdown, number, lasting=lasting):
                pretrain(settings(directory), init_accelerator())
        except OSError:
            pass
    found = last_whole_checkpoint(checkpoints)[0]
    return (
        "" if found is not None and found.name >= good.name else "the last good checkpoint is lost"
    )


def begun(directory: Path) -> None:
    """A copy of a run that was stopped after its first epoch."""
    first = directory.with_name("begun")
    if not first.is_dir():
        shutil.copytree(directory.with_name("every"), first)
        for path in list_checkpoints(first / "checkpoints")[1:]:
            shutil.rmtree(path)
        text = (first / "recipe.yaml").read_text()
        (first / "recipe.yaml").write_text(text.replace("keep_last: 9", "keep_last: 1"))
        for name in ("backbone.safetensors", "backbone.json", "status.json"):
            (first / name).unlink()
    shutil.copytree(first, directory)


def limits(intact: Path, out: Path, most: int | None) -> Outcome:
    """The real command under limits of the size of a file."""
    tried = survived = 0
    lost: list[str] = []
    file = out / "limited.yaml"
    for kib in LIMITS[:most]:
        directory = out / f"limit-{kib}"
        begun(directory)
        file.write_text(yaml.safe_dump(SETTINGS | {"run_dir": str(directory)}))
        good = last_whole_checkpoint(directory / "checkpoints")[0]
        assert good is not None
        code, output = command(file, kib * 1024)
        tried += 1
        found = last_whole_checkpoint(directory / "checkpoints")[0]
        reasons = [
            "a traceback" if "Traceback" in OF_TENSORBOARD.sub("", output) else "",
            "" if code in (0, 1) else f"exit code {code}",
            "" if found is not None and found.name >= good.name else "the last good one is lost",
        ]
        code, _ = command(file, None)
        reasons += [
            f"exit code {code} without the limit" if code else "",
            *differences(directory, intact),
        ]
        reason = "; ".join(filter(None, reasons))
        survived += not reason
        lost += [f"{kib} KiB: {reason}: {output[-300:]}"] if reason else []
    return tried, survived, lost


def command(file: Path, limit: int | None) -> tuple[int, str]:
    """Exit code and stderr of the command that a user gives."""

    def limit_files() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "sslgh.pretrain", str(file)],
        preexec_fn=limit_files,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


if __name__ == "__main__":
    sys.exit(main())
