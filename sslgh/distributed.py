"""Collectives: gather with gradient, and means whose gradient stays right under DDP's averaging.

Everything works unchanged on one process without torch.distributed being initialized.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class DistInfo(NamedTuple):
    """Rank of this process and number of processes (world size)."""

    rank: int
    size: int


def dist_info() -> DistInfo:
    """Rank and world size; (0, 1) without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return DistInfo(0, 1)
    return DistInfo(dist.get_rank(), dist.get_world_size())


def gather(tensor: Tensor) -> tuple[Tensor, int]:
    """Stack the rows (N, ...) of all ranks to (M, ...), and the place of the first local row. Collective: call it on every rank.

    N may differ between ranks. The backward sums the gradients of all ranks: a row enters the loss of each.
    """
    if dist_info().size == 1:
        return tensor, 0
    stacked, first = _Gather.apply(tensor)
    return stacked, int(first)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> tuple[Tensor, int]:
        rank, size = dist_info()
        rows = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(size)]
        dist.all_gather(rows, torch.tensor([len(tensor)], device=tensor.device))
        counts = torch.cat(rows).tolist()
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        ctx.first, ctx.count = sum(counts[:rank]), len(tensor)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), ctx.first

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.count]


def weighted_mean(per_sample: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of losses (N,) over all ranks, once DDP has averaged. Collective: call it on every rank.

    The local sum is divided by the mean over ranks of the summed weights (N,): DDP divides by the number of
    ranks P, so that dividing by the global sum would leave 1/P of the gradient.

    Examples:
        >>> weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
        tensor(2.)
    """
    if weights is None:
        weights = torch.ones_like(per_sample)
    weights = weights.detach().to(per_sample.dtype)
    total = weights.sum()
    if dist_info().size > 1:
        dist.all_reduce(total)
        total = total / dist_info().size
    return (weights * per_sample).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


def broadcast(tensor: Tensor) -> None:
    """Overwrite ``tensor`` on every rank with that of rank 0. Collective: call it on every rank."""
    if dist_info().size > 1:
        dist.broadcast(tensor, 0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on at least one rank. Collective: call it on every rank."""
    return any_of([flag], device)[0]


def any_of(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """`any_rank` of several flags, in one collective."""
    if dist_info().size == 1:
        return list(flags)
    found = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one. Collective with FSDP: call it on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; the whole tensor without FSDP."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unshard_(module: nn.Module) -> None:
    """Replace sharded parameters of a trained module by full ones, for its last file. Collective: call it on every rank."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if isinstance(parameter, DTensor):
                part._parameters[name] = nn.Parameter(parameter.detach().full_tensor())
