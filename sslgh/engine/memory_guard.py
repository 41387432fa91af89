"""Guard against networks that memory cannot hold, while they are built."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.overrides import TorchFunctionMode

from sslgh.recipe import Recipe, RecipeError

FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.rand, torch.randn}
# Copies of a module's tensors: a teacher has no gradient.
COPYING = {torch.clone, torch.Tensor.clone, torch.Tensor.__deepcopy__}
# Copies of a trained weight in the optimizer.
COPIES = {"sgd": 1, "lars": 1, "adamw": 2}
REMEDY = (
    "lower model.width, model.projector or the sizes in method, or choose a smaller model.backbone"
)


@contextmanager
def memory_guard(recipe: Recipe, *, trained: bool = True) -> Iterator[None]:
    """Refuse to build more than memory can hold, before the machine swaps or kills the process.

    Each tensor that torch makes in the block is counted before it is allocated: with a gradient and
    optimizer state if it is ``trained`` on the CPU, else alone; a copy of a module, such as a teacher, alone.

    Raises:
        RecipeError: If they do not fit; one sentence with both figures.
    """
    copies = 2 + COPIES[recipe.optim.name] if trained and not torch.cuda.is_available() else 1
    try:
        with _CountingMode(copies, free_memory()):
            yield
    # Python's error for an infinite width, and torch's two for one beyond 64 bits.
    except (OverflowError, RuntimeError, TypeError) as error:
        if not isinstance(error, OverflowError) and "overflow" not in str(error).lower():
            raise
        raise RecipeError(
            f"model: the network is larger than a machine can address; {REMEDY}"
        ) from None


class _CountingMode(TorchFunctionMode):
    def __init__(self, copies: int, free: int) -> None:
        super().__init__()
        self.copies, self.free, self.needed = copies, free, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            options = {key: kwargs[key] for key in kwargs.keys() - {"generator", "out"}}
            self._count(self.copies * func(*args, **options | {"device": "meta"}).nbytes)
        elif func in COPYING:
            self._count(args[0].nbytes)
        return func(*args, **kwargs)

    def _count(self, amount: int) -> None:
        self.needed += amount
        if self.needed > self.free:
            raise RecipeError(
                f"model: the network with what trains it needs about {gigabytes(self.needed)}, but "
                f"{gigabytes(self.free)} of memory are free; {REMEDY}"
            )


def gigabytes(amount: float) -> str:
    """Format a number of bytes.

    Examples:
        >>> gigabytes(2_500_000_000), gigabytes(40_000)
        ('2.5 GB', '0.04 MB')
    """
    return f"{amount / 1e9:,.1f} GB" if amount >= 10**8 else f"{amount / 1e6:.2f} MB"


def free_memory() -> int:
    """Bytes available to this process: its share of free memory, within limits of container and address space."""
    memory, process = psutil.virtual_memory().available, psutil.Process()
    known: list[int] = [memory + psutil.swap_memory().free]
    known += _left_in_container(Path("/sys/fs/cgroup"))
    if hasattr(process, "rlimit"):
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        known += [] if limit == psutil.RLIM_INFINITY else [limit - process.memory_info().vms]
    return max(min(known), 0) // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _left_in_container(cgroup: Path) -> list[int]:
    """Bytes that a container's limit leaves, pages of files that can be dropped included; empty without a limit."""
    limit, used, details = (cgroup / f"memory.{name}" for name in ("max", "current", "stat"))
    if not limit.is_file() or not (text := limit.read_text().strip()).isdecimal():
        return []
    droppable = dict(line.split() for line in details.read_text().splitlines())
    files = int(droppable["inactive_file"]) + int(droppable["active_file"])
    return [int(text) - int(used.read_text()) + files]
