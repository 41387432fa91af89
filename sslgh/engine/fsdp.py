"""FSDP2: weights and optimizer state sharded over the ranks, and full tensors for files.

FSDP2 holds a parameter as a DTensor, of whose first axis each rank has a shard. A checkpoint holds full
tensors under the same names as without FSDP, so that a run may be resumed with it or without it.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import AveragedModel

from sslgh.models import PrunedBranch


class FSDPError(ValueError):
    """A run that FSDP cannot train."""


def sharding_asked() -> bool:
    """Whether the launcher's configuration asks for FSDP.

    Raises:
        FSDPError: If it is FSDP1, which does not keep parameters apart.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    version = os.environ.get("FSDP_VERSION", "1")
    if asked and version != "2":
        raise FSDPError(
            f"fsdp_version {version} is not supported; use --config_file recipes/accelerate/fsdp.yaml "
            f"(fsdp_version: 2)"
        )
    return asked


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Use FSDP on the CPU too if the launcher's configuration asks for it.

    Accelerate (1.15) reads it for accelerators only, and would silently run DDP on several CPU processes.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # Every new state copies the type of the partial one.
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP


def prepare_for_fsdp(module: nn.Module, aux_state: nn.Module | None) -> None:
    """Make parameters contiguous, before `Accelerator.prepare`.

    Raises:
        FSDPError: If weights are read or written outside of the forward pass and the optimizer.
    """
    if any(not parameter.requires_grad for parameter in module.parameters()):
        raise FSDPError(
            f"FSDP cannot train {type(module).__name__} with weights that only follow or stay, a teacher's or "
            f"a frozen backbone's; launch without it (recipes/accelerate/gpu-8.yaml)"
        )
    if aux_state is not None and any(
        isinstance(part, AveragedModel) for part in aux_state.modules()
    ):
        raise FSDPError("FSDP keeps no average of the weights; set finetune.ema: null")
    if any(isinstance(part, PrunedBranch) for part in module.modules()):
        raise FSDPError(
            f"FSDP cannot train {type(module).__name__}, whose second branch reads the weights of the first; "
            f"launch without it (recipes/accelerate/gpu-8.yaml)"
        )
    module.to(memory_format=torch.contiguous_format)


def shard_like(value: Any, example: Tensor) -> Any:
    """This rank's shard of a full tensor that all ranks have read, cut as ``example``; else the value itself."""
    if isinstance(example, DTensor) and isinstance(value, Tensor) and value.shape == example.shape:
        return distribute_tensor(value, example.device_mesh, example.placements, src_data_rank=None)
    return value
