"""How large a run is, known before anything of it is allocated.

Shapes: N images, D embedding width, K vertices.
"""

import os
import resource
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sslgh.data import ImageSet
from sslgh.engine.build import build_method, build_network
from sslgh.engine.monitor.labels import MAX_TRACKED
from sslgh.recipe import Recipe, RecipeError

FLOAT = 4
# Copies of a trained weight that an optimizer keeps.
COPIES = {"sgd": 1, "lars": 1, "adamw": 2}
# Bytes of an image that a harmonizer keeps beside its row: label, weight, whether it was seen.
OF_AN_IMAGE = 13


class RunSize(NamedTuple):
    """Bytes of a run.

    Attributes:
        weights: Parameters and buffers.
        trained: Parameters that get a gradient.
        optimizer: Its state.
        memory: What is remembered of the images: bank or vertex scores, labels, weights.
    """

    weights: int
    trained: int
    optimizer: int
    memory: int

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint."""
        return self.weights + self.optimizer + self.memory

    @property
    def training(self) -> int:
        """Bytes that training keeps throughout; activations come on top."""
        return self.checkpoint + self.trained


def run_size(
    recipe: Recipe, *, image_size: int, num_images: int, num_classes: int
) -> RunSize | None:
    """The size of a recipe's run; its network is built without memory, on torch's meta device.

    Args:
        recipe: Its weights to start from are not looked at.
        image_size: Side of the input (pixels).
        num_images: N.
        num_classes: Of a supervised run.

    Returns:
        None for a library's backbone that cannot be built so.

    Raises:
        RecipeError: If the sizes are beyond what a machine can address.
        ValueError: If the network cannot be built.
    """
    network = _weightless(recipe, image_size, num_classes)
    if network is None:
        return None
    trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    width = getattr(network, "embedding_dim", 0)
    return RunSize(
        weights=_bytes(network),
        trained=trained,
        optimizer=COPIES[recipe.optim.name] * trained,
        memory=_remembered(recipe, num_images, width) + _averaged(recipe, network),
    )


def _weightless(recipe: Recipe, image_size: int, num_classes: int) -> nn.Module | None:
    drawn = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": None})})
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            # Weights of teachers are read, and go nowhere.
            warnings.filterwarnings("ignore", message=".*from a non-meta parameter")
            return _network(drawn, image_size, num_classes)
    # Python's error for an infinite width, and torch's two for one beyond 64 bits.
    except (OverflowError, RuntimeError, TypeError) as error:
        if not isinstance(error, OverflowError) and "overflow" not in str(error).lower():
            if "meta" in str(error):  # it looked at a value while it was built
                return None
            raise
    raise RecipeError(
        "model: the network is larger than a machine can address; lower model.width, model.projector or "
        "the sizes in method"
    )


def _network(recipe: Recipe, image_size: int, num_classes: int) -> nn.Module:
    if recipe.finetune is None:
        return build_method(recipe, image_size)
    return build_network(recipe, image_size, num_classes)


def _bytes(network: nn.Module) -> int:
    tensors = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _remembered(recipe: Recipe, num_images: int, width: int) -> int:
    tracked = min(MAX_TRACKED, num_images) * width * FLOAT
    if recipe.harmonize is None:
        return tracked
    vertices = recipe.harmonize.vertices
    row = width if recipe.harmonize.population == "faiss" else vertices
    return tracked + num_images * (row * FLOAT + OF_AN_IMAGE) + vertices * width * FLOAT


def _averaged(recipe: Recipe, network: nn.Module) -> int:
    """Of the moving average of a supervised run's weights."""
    averaged = recipe.finetune is not None and recipe.finetune.ema is not None
    return _bytes(network) if averaged else 0


def check_memory(size: RunSize, free: int, *, on_device: bool) -> None:
    """Refuse a run that memory cannot hold, before the machine swaps or kills it.

    Args:
        size: Of the run.
        free: Bytes of this process's share of the machine; `free_memory`.
        on_device: Whether only the weights pass through it on their way to an accelerator.

    Raises:
        RecipeError: One sentence with both figures.
    """
    need = size.weights + size.memory if on_device else size.training
    if need > free:
        raise RecipeError(
            f"model: the network with what trains it needs {gigabytes(need)}, but {gigabytes(free)} of "
            "memory are free; lower model.width, model.projector or the sizes in method, or choose a "
            "smaller model.backbone"
        )


def check_size(recipe: Recipe, images: ImageSet, image_size: int) -> RunSize | None:
    """The size of a run that memory can hold; worth a look before anything is built.

    Args:
        recipe: The run.
        images: Its training set.
        image_size: Side of the input (pixels).

    Raises:
        RecipeError: If memory cannot hold it.
        ValueError: If the network cannot be built.
    """
    classes = max(len(images.class_names or ()), 2)
    size = run_size(recipe, image_size=image_size, num_images=len(images), num_classes=classes)
    if size is not None:
        check_memory(size, free_memory(), on_device=torch.cuda.is_available())
    return size


def gigabytes(amount: float) -> str:
    """An amount of bytes in words.

    Examples:
        >>> gigabytes(2_500_000_000), gigabytes(40_000)
        ('2.5 GB', '0.04 MB')
    """
    if amount >= 10**8:
        return f"{amount / 1e9:,.1f} GB"
    return f"{amount / 1e6:.2f} MB"


def free_memory() -> int:
    """Bytes that one process of this machine's may take: free memory, container and limits considered."""
    known = [
        amount for amount in (_allowed(), _available(), _of_the_container()) if amount is not None
    ]
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(known, default=2**63) // max(share, 1)


def _allowed() -> int | None:
    """What a limit of the address space (ulimit -v) leaves."""
    limit, file = resource.getrlimit(resource.RLIMIT_AS)[0], Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not file.is_file():
        return None
    return max(limit - int(file.read_text().split()[0]) * resource.getpagesize(), 0)


def _available() -> int | None:
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    lines = [line.split() for line in file.read_text().splitlines()]
    amounts = {words[0]: 1024 * int(words[1]) for words in lines}
    return amounts.get("MemAvailable:", 0) + amounts.get("SwapFree:", 0) or None


def _of_the_container() -> int | None:
    file = Path("/sys/fs/cgroup/memory.max")
    text = file.read_text().strip() if file.is_file() else "max"
    return int(text) if text.isdecimal() else None
