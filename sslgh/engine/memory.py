"""Memory of a run: a network that does not fit is refused while it is built, a batch before the first step.

Shapes: n images of a trial.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, finalize

import psutil
import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, UntypedStorage, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslgh.data import PretrainBatch, SupervisedBatch, local_side, num_workers
from sslgh.data.augment import NUM_PARAMS
from sslgh.engine.checkpoint import Progress
from sslgh.engine.trainer import Stage, step_info
from sslgh.recipe import Recipe, RecipeError

FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.rand, torch.randn}
# Copies of a module's tensors: a teacher has no gradient.
COPYING = {torch.clone, torch.Tensor.clone, torch.Tensor.__deepcopy__}
# Copies of a trained weight in the optimizer.
COPIES = {"sgd": 1, "lars": 1, "adamw": 2}
# Methods that load frozen teachers.
TAUGHT = ("distill", "distil")
REMEDY = (
    "lower model.width, model.projector or the sizes in method, or choose a smaller model.backbone"
)
# Images of the two trials: what grows with the batch is their difference.
TRIALS = (2, 4)
# Buffers of the kernels and gaps of the allocator, as a factor of the activations (measured: 1.05 to 1.12).
WORKSPACE = 1.1
# Private memory of a loader worker (bytes).
WORKER = 100 * 10**6


@contextmanager
def memory_guard(recipe: Recipe, *, trained: bool = True) -> Iterator[None]:
    """Refuse to build more than memory can hold, before the machine swaps or kills the process.

    Each tensor that torch makes in the block is counted before it is allocated: with a gradient and
    optimizer state if it is ``trained`` on the CPU, else alone; a copy of a module, such as a teacher, alone. Where
    some of the network is frozen all is counted alone: `check_memory` knows what is trained.

    Raises:
        RecipeError: If they do not fit; one sentence with both figures.
    """
    frozen = (
        recipe.model.adapter is not None
        or (recipe.finetune is not None and recipe.finetune.freeze)
        or _is_taught(recipe)
    )
    whole = trained and not frozen and not torch.cuda.is_available()
    copies = 2 + COPIES[recipe.optim.name] if whole else 1
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


def _is_taught(recipe: Recipe) -> bool:
    return recipe.method is not None and recipe.method.name in TAUGHT


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


class MemoryNeed(NamedTuple):
    """Memory (bytes) that a rank allocates in training, beyond what it holds once it is built.

    Attributes:
        fixed: Gradients, optimizer state, the copy for a checkpoint, loader workers.
        per_image: Activations per image, at their peak.
        images: Images of a micro-batch.
    """

    fixed: int
    per_image: int
    images: int

    @property
    def total(self) -> int:
        """Bytes for the micro-batch of the recipe."""
        return self.fixed + self.images * self.per_image


def check_memory(stage: Stage, image_size: int) -> MemoryNeed | None:
    """Refuse a run whose batch does not fit, before anything is written. Collective: call it on every rank.

    Returns:
        What it needs; None with FSDP, whose shards a forward without a backward would leave gathered.

    Raises:
        RecipeError: On every rank; one sentence with both figures and the batch that fits.
    """
    run = stage.run
    if run.accelerator.is_fsdp2:
        return None
    need = memory_need(stage, image_size)
    free = free_bytes(run.accelerator.device)
    found = gather_object([(need.total - free, *need, free)])
    missing, *worst, free = max(found)
    if missing > 0:
        raise RecipeError(too_large(run.recipe, MemoryNeed(*worst), free, len(found)))
    return need


def memory_need(stage: Stage, image_size: int) -> MemoryNeed:
    """What a rank will allocate in training. Collective: call it on every rank."""
    run, recipe = stage.run, stage.run.recipe
    few, many = (_activations(stage, _noise(recipe, image_size, n), n) for n in TRIALS)
    per_image = max(many - few, 0) // (TRIALS[1] - TRIALS[0])
    trained = sum(p.nbytes for p in run.module.parameters() if p.requires_grad)
    state = COPIES[recipe.optim.name] * trained
    fixed = max(few - TRIALS[0] * per_image, 0) + trained + state
    if run.accelerator.device.type == "cpu":
        modules = [run.module] if run.aux_state is None else [run.module, run.aux_state]
        fixed += state + sum(t.nbytes for m in modules for t in m.state_dict().values())
        fixed += WORKER * num_workers(recipe.data, in_memory=run.images.in_memory)
    batch = min(recipe.train.batch_size, len(run.images))
    parts = recipe.train.accumulation * run.accelerator.num_processes
    return MemoryNeed(fixed, int(WORKSPACE * per_image), -(-batch // parts))


def _activations(stage: Stage, batch: PretrainBatch | SupervisedBatch, n: int) -> int:
    """Bytes that the forward of a batch leaves for the backward, or its peak; the stage is as it was before."""
    run, device = stage.run, stage.run.accelerator.device
    run.model.train()  # a loaded backbone is in eval mode
    with ExitStack() as stack:
        stack.enter_context(buffers_kept(run.module))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(run.accelerator.no_sync(run.model))
        live = stack.enter_context(LiveBytes(run.module))
        metrics = stage.loss(send_to_device(batch, device), step_info(run, Progress()))
        needed = live.now
        if _is_taught(run.recipe):  # the peak of a large teacher's forward, workspace included
            needed = max(live.now, live.peak / WORKSPACE)
        if run.recipe.model.checkpointing:
            needed = _peak_of_backward(metrics["loss"], run.module, live)
        stage.discard_step()  # which may move a buffer
    return int(needed)


def _peak_of_backward(loss: Tensor, module: nn.Module, live: "LiveBytes") -> int:
    """Peak of a backward that computes activations again."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.autograd.grad(loss, parameters, allow_unused=True)
    return int(live.peak)


def _noise(recipe: Recipe, size: int, n: int) -> PretrainBatch | SupervisedBatch:
    """A batch of n noise images, as the loader gives them."""
    generator, augment = torch.Generator().manual_seed(0), recipe.data.augment

    def noise(views: int, side: int) -> tuple[Tensor, Tensor]:
        shape = n, views, 3, side, side
        crops = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return crops, torch.rand(n, views, NUM_PARAMS, generator=generator)

    crops, index = noise(2, size), torch.zeros(n, dtype=torch.int64)
    if recipe.finetune is not None:
        return SupervisedBatch(crops[0][:, 0], *crops, index, index, index - 1)
    small = noise(augment.local_crops, local_side(augment, size))
    return PretrainBatch(*crops, *small, index, index - 1)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give a module's buffers their values back, such as batch statistics, when the block ends without an error."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of tensors made in the block, as long as they live.

    Gradients, masks and casts of the weights, which have their shapes, do not grow with a batch and are
    not counted.

    Args:
        module: The module in training.

    Attributes:
        now: Bytes alive.
        peak: Most bytes alive at once.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        held = [*module.parameters(), *module.buffers()]
        self._shapes = {tensor.shape for tensor in held}
        self._seen: WeakKeyDictionary[UntypedStorage, None] = WeakKeyDictionary(
            {tensor.untyped_storage(): None for tensor in held}
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.shape not in self._shapes:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen[storage] = None
            self._add(storage.nbytes())
            finalize(storage, self._add, -storage.nbytes())

    def _add(self, amount: int) -> None:
        self.now += amount
        self.peak = max(self.peak, self.now)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return free_memory()


def too_large(recipe: Recipe, need: MemoryNeed, free: int, processes: int) -> str:
    """Sentence about a batch that does not fit, with the largest power of two that does."""
    train = recipe.train
    found = (
        f"train.batch_size {train.batch_size} needs about {gigabytes(need.total)} of memory per process, but "
        f"{gigabytes(free)} are free"
    )
    images = (free - need.fixed) // max(need.per_image, 1)
    batch = 2 ** (max(images, 1).bit_length() - 1) * processes * train.accumulation
    if images < 1 or batch < 2 * processes * train.accumulation:
        return f"{found}, too little for any batch; choose a smaller model.backbone, model.width or data.size"
    return f"{found}; set train.batch_size={batch}"
