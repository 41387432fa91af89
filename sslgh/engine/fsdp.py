"""Weights and optimizer state that FSDP has cut over the processes, and made whole again for files.

FSDP2 holds a parameter as a DTensor: of its first axis each process has a part. A checkpoint holds whole
tensors under the same names as without FSDP, so that a run may go on with it or without it.
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
    """A run that cannot be cut over processes, and the way out."""


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
    """Let FSDP of the launcher's configuration hold on the CPU too.

    Accelerate (1.15) reads it for accelerators only, and would run DDP on several CPU processes silently.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # Every new state copies the type from the partial one.
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP


def prepare_for_fsdp(module: nn.Module, aux_state: nn.Module | None) -> None:
    """Before `Accelerator.prepare`: FSDP takes contiguous parameters, and moves only what learns.

    Raises:
        FSDPError: If weights are read or written beside the forward and the optimizer.
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


def gather_full(value: Any) -> Any:
    """The same with every tensor whole, of a tensor or of dictionaries and lists of them. Collective: call it on every rank."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: gather_full(held) for key, held in value.items()}
    if isinstance(value, list):
        return [gather_full(held) for held in value]
    return value


def local_shard(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; all of it where nothing is cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """This process's part of a whole tensor that all processes have read, as that of ``example``."""
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def cut_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dictionary of an optimizer with what belongs to a cut parameter cut like it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return state
    cut = {
        index: {
            key: shard_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for key, value in held.items()
        }
        for index, held in state["state"].items()
    }
    return state | {"state": cut}


def unshard_(module: nn.Module) -> None:
    """Replace the cut parameters of a trained module by whole ones, for its last file. Collective: call it on every rank."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if isinstance(parameter, DTensor):
                part._parameters[name] = nn.Parameter(parameter.detach().full_tensor())
