"""Fixtures shared by all tests: real processes, small recipes."""

import gc
import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import pytest
import torch

# Nets this small are slower with two threads, far slower on a machine that does something else besides.
torch.set_num_threads(1)

WORKER = Path(__file__).parent / "worker.py"
Run = Callable[..., list[Any]]


@contextmanager
def processes(size: int) -> Iterator[Run]:
    """``run(function, *arguments)`` calls a module-level function on every process at once."""
    with tempfile.TemporaryDirectory() as folder:
        listeners = [Listener(f"{folder}/{rank}") for rank in range(size)]
        command = [sys.executable, str(WORKER)]
        children = [
            subprocess.Popen([*command, str(rank), str(size), folder]) for rank in range(size)
        ]
        pipes = [listener.accept() for listener in listeners]

        def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            for pipe in pipes:
                task = (inspect.getsourcefile(function), function.__name__, arguments)
                pipe.send_bytes(pickle.dumps(task))
            answers = [pickle.loads(pipe.recv_bytes()) for pipe in pipes]
            for good, answer in answers:
                assert good, answer
            return [answer for _, answer in answers]

        yield run
        for pipe in pipes:
            pipe.send_bytes(pickle.dumps(None))
            pipe.close()
        for child in children:
            assert child.wait(60) == 0
        for listener in listeners:
            listener.close()


LEFT: list[str] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that a test leaves behind fails the suite; it could keep the suite from ending."""
    gc.collect()
    for process in multiprocessing.active_children():
        LEFT.append(str(process))
        process.kill()
    if hasattr(
        session.config, "workeroutput"
    ):  # one of several pytest processes: the first one judges
        session.config.workeroutput["left"] = LEFT
    elif LEFT:
        print(f"\nleft behind by the tests: {LEFT}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a pytest process of pytest-xdist found at its end."""
    LEFT.extend(getattr(node, "workeroutput", {}).get("left", ()))


def world_size() -> int:
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    return dist.get_world_size()


@pytest.fixture(scope="session")
def two_processes() -> Iterator[Run]:
    with processes(2) as run:
        assert run(world_size) == [2, 2]
        yield run


@pytest.fixture(scope="session")
def three_processes() -> Iterator[Run]:
    with processes(3) as run:
        assert run(world_size) == [3, 3, 3]
        yield run


TINY = {
    "name": "tiny",
    "data": {
        "source": "digits",
        "size": 8,
        "long_tail": {"imbalance": 10, "max_per_class": 30},
        "augment": {"flip": 0, "hue": 0, "saturation": 0, "grayscale": 0},
    },
    "model": {"width": 0.125, "projector": {"hidden": 32, "out": 16}},
    "method": {"name": "simclr"},
    "optim": {"lr": 0.1, "warmup_epochs": 1},
    "train": {"epochs": 4, "batch_size": 32, "checkpoint_every": 1, "log_every": 1},
}
# Its few images show no kinds: as if they did, so that weights and term act.
TINY_GH = {
    "vertices": 10,
    "visibility": 1.0,
    "warmup_epochs": 1,
    "ramp_epochs": 1,
    "refresh_every": 1,
}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Any]:
    """``tiny("train.epochs=2")``: a recipe on 118 real digits whose epoch takes a moment."""
    from sslgh.recipe import make_recipe  # noqa: PLC0415
    from sslgh.recipe.loading import apply_overrides  # noqa: PLC0415

    def make(*overrides: str, gh: bool = False) -> Any:
        settings = TINY | {"run_dir": str(tmp_path / "run"), "harmonize": TINY_GH if gh else None}
        return make_recipe(apply_overrides(settings, overrides))

    return make


@pytest.fixture
def stopped_at() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which a run gets SIGTERM in a step and has to stop after it.

    Called with the number of the step: ``with stopped_at(3): ...``.
    """
    from sslgh.engine import trainer  # noqa: PLC0415
    from sslgh.engine.exit_codes import Stopped  # noqa: PLC0415

    @contextmanager
    def expect_stop(number: int) -> Iterator[None]:
        original = trainer.train_step

        def signalled(stage: Any, batches: Any, step: Any, stop: Any) -> Any:
            if step.global_step == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(stage, batches, step, stop)

        message = f"stopped after step {number}; run the same command to resume"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "train_step", signalled)
            with pytest.raises(Stopped, match=message):
                yield

    return expect_stop


@pytest.fixture
def tiny_settings() -> dict[str, Any]:
    """The tiny recipe with GH, as a mapping."""
    return TINY | {"harmonize": TINY_GH}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    import yaml  # noqa: PLC0415

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"run_dir": str(tmp_path / "run")}))
    return path


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and rights that root has not: the kernel itself refuses, nothing is played."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        user = os.getuid()
        if user == 0:
            os.chown(root, 65534, -1)
            os.setresuid(65534, 65534, 0)
        yield root
        os.setresuid(user, user, user)
        for folder, _, files in os.walk(root):
            Path(folder).chmod(0o700)
            for file in files:
                (Path(folder) / file).chmod(0o600)
