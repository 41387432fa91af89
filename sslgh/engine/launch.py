"""The processes of a run: started through Accelerate, refused when they are not those asked for."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from sslgh.engine.fsdp import shard_on_cpu, sharding_asked

# Process 0 clusters while the others wait in a broadcast; Accelerate's default is 10 minutes.
TIMEOUT = timedelta(hours=2)
T = TypeVar("T")


class LaunchError(ValueError):
    """The launcher started another number of processes than was asked for."""


def init_accelerator(processes: int | None = None) -> Accelerator:
    """The Accelerator of this process.

    Mixed precision is the recipe's and applied by the loop, whatever the launcher's
    configuration says: a forgotten default_config.yaml must not change a result.

    Args:
        processes: How many there must be; None: any number.

    Raises:
        LaunchError: If the launcher silently started fewer processes than it was asked for.
        FSDPError: If it asks for FSDP1.
    """
    asked_quietly = "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ
    if asked_quietly:
        raise LaunchError(
            "the launcher was asked for several processes but started one (MASTER_PORT is set, "
            "WORLD_SIZE is not); use --config_file recipes/accelerate/cpu-2.yaml or torchrun"
        )
    sharded = sharding_asked()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            # Queues, centers and global batch statistics are alike on all processes already.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        ],
    )
    check_num_processes(accelerator, processes)
    if sharded:
        shard_on_cpu(accelerator)
    return accelerator


def check_num_processes(accelerator: Accelerator, processes: int | None) -> None:
    """Refuse a world that is not the one that was asked for.

    Raises:
        LaunchError: One sentence with the way out.
    """
    size = accelerator.num_processes
    asked = int(os.environ.get("WORLD_SIZE", "0"))
    if "LOCAL_RANK" in os.environ and size == 1 and asked != 1:
        raise LaunchError(
            f"this process is one of {asked or 'several'} but believes to be alone; use "
            "--config_file recipes/accelerate/cpu-2.yaml (distributed_type: MULTI_GPU, use_cpu: "
            "false) or torchrun"
        )
    if processes is not None and size != processes:
        raise LaunchError(f"train.processes is {processes}, but {size} started")


def describe_processes(accelerator: Accelerator) -> str:
    """One line: processes, machines, device, threads."""
    size = accelerator.num_processes
    machines = max(size // int(os.environ.get("LOCAL_WORLD_SIZE", size)), 1)
    device = str(accelerator.device.type)
    if device == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    processes = "1 process" if size == 1 else f"{size} processes on {machines} machine(s)"
    if accelerator.is_fsdp2:
        processes += " (FSDP)"
    return f"{processes}, {device}, {torch.get_num_threads()} CPU threads each"


def package_versions() -> dict[str, str]:
    """What decides the launch, for ``environment.json``."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    found = {name: os.environ[name] for name in names if name in os.environ}
    return found | {"python": sys.version.split()[0], "program": Path(sys.argv[0]).name}


def run_on_main(work: Callable[[], T], accelerator: Accelerator) -> T:
    """What process 0 finds, on every process. Collective: call it on every rank.

    Raises:
        ValueError, OSError: What ``work`` raised, on every process, so that none waits for the others.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer = [work()]
        except (ValueError, OSError) as error:
            answer = [error]
    answer = broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    found: T = answer[0]
    return found


def shutdown_distributed() -> None:
    """Leave the process group, on every way out: a launcher warns about one left open."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
