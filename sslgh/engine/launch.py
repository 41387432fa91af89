"""Launch of a run: Accelerate and its processes, stop signals, deterministic kernels."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from sslgh.data.loader import STOP_SIGNALS
from sslgh.engine.fsdp import shard_on_cpu, sharding_asked

# Rank 0 clusters while the others wait in a broadcast; Accelerate's default is 10 minutes.
TIMEOUT = timedelta(hours=2)
T = TypeVar("T")
STOPPING = b"\nsslgh: stopping after this step; a second Ctrl-C ends at once, without saving\n"
STARTED_ONE = (
    "the launcher was asked for several processes but started one (MASTER_PORT is set, "
    "WORLD_SIZE is not); use --config_file recipes/accelerate/cpu-2.yaml or torchrun"
)


class LaunchError(ValueError):
    """The launcher started another number of processes than was asked for."""


class DeterminismError(ValueError):
    """An operation has no deterministic kernel on this device."""


def init_accelerator(processes: int | None = None) -> Accelerator:
    """The Accelerator of this process; the precision is the recipe's, whatever the launcher is configured to.

    Raises:
        LaunchError: If another number of processes started than ``processes``, or than the launcher was asked for.
        FSDPError: If it asks for FSDP1.
    """
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise LaunchError(STARTED_ONE)
    sharded = "ACCELERATE_USE_FSDP" in os.environ and sharding_asked()
    accelerator = Accelerator(
        cpu=not has_accelerator(),
        mixed_precision="no",  # a forgotten default_config.yaml must not change a result
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            # Queues, centers and global batch statistics are equal on all ranks already.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    check_num_processes(accelerator, processes)
    if not accelerator.is_main_process:
        warnings.simplefilter("ignore")  # rank 0 shows those of libraries
    if sharded:
        shard_on_cpu(accelerator)
    return accelerator


def has_accelerator() -> bool:
    """Whether this process trains on a GPU: CUDA, or MPS, which has no collectives, if it trains alone."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return torch.cuda.is_available() or (alone and torch.backends.mps.is_available())


def check_num_processes(accelerator: Accelerator, processes: int | None) -> None:
    """Raise LaunchError if another number of processes started, or if they started apart."""
    size = accelerator.num_processes
    if "LOCAL_RANK" in os.environ and size == 1 and int(os.environ.get("WORLD_SIZE", "0")) != 1:
        raise LaunchError(
            f"this process is one of {os.environ.get('WORLD_SIZE', 'several')} but believes to be alone; "
            "use --config_file recipes/accelerate/cpu-2.yaml (distributed_type: MULTI_GPU, use_cpu: "
            "false) or torchrun"
        )
    if processes is not None and size != processes:
        raise LaunchError(f"train.processes is {processes}, but {size} started")


def describe_processes(accelerator: Accelerator) -> str:
    """One line: processes, machines, device, threads."""
    size = accelerator.num_processes
    machines = max(size // int(os.environ.get("LOCAL_WORLD_SIZE", size)), 1)
    gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if gpu else accelerator.device.type
    processes = "1 process" if size == 1 else f"{size} processes on {machines} machine(s)"
    processes += " (FSDP)" if accelerator.is_fsdp2 else ""
    return f"{processes}, {device}, {torch.get_num_threads()} CPU threads each"


def launch_environment() -> dict[str, str]:
    """Launch variables, Python and program, for ``environment.json``."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    found = {name: os.environ[name] for name in names if name in os.environ}
    return found | {"python": sys.version.split()[0], "program": Path(sys.argv[0]).name}


def run_on_main(work: Callable[[], T], accelerator: Accelerator) -> T:
    """Run a function on rank 0 and broadcast its result. Collective: call it on every rank.

    Raises:
        ValueError, OSError: The error of ``work``, on every rank, so that none waits for the others.
    """
    try:
        answer: list[Any] = [work() if accelerator.is_main_process else None]
    except (ValueError, OSError) as error:
        answer = [error]
    found: T | Exception = broadcast_object_list(answer)[0]
    if isinstance(found, Exception):
        raise found
    return found


def shutdown_distributed() -> None:
    """Leave the process group: a launcher warns about one left open."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class StopRequest:
    """Catches SIGTERM, SIGINT and SIGUSR1 to stop after the step; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked and os.environ.get("RANK", "0") == "0":
            # Not through a file object: the signal may have come in the middle of its write.
            with suppress(OSError):
                os.write(2, STOPPING)
        self.asked = True

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
            # A block that ended before it looked must not swallow the request of the block around it.
            if isinstance(outer := getattr(handler, "__self__", None), StopRequest):
                outer.asked = outer.asked or self.asked


@contextmanager
def determinism() -> Iterator[None]:
    """Deterministic kernels within the block; they cost speed on a GPU.

    On a CPU with a fixed number of threads runs repeat to the bit without them too.

    Raises:
        DeterminismError: If an operation has no deterministic kernel; it is named.
    """
    # cuBLAS reads it at its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise DeterminismError(f"{reason}; set train.deterministic: false") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
