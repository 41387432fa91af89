"""Estimate of a run's checkpoints, before anything is allocated.

Shapes: N images, D embedding width, K vertices.
"""

import warnings

import torch
from torch import nn

from sslgh.engine.build import build_method, build_network
from sslgh.engine.memory import COPIES
from sslgh.engine.monitor.labels import MAX_TRACKED
from sslgh.recipe import Recipe

FLOAT = 4
# Bytes per image in a harmonizer besides its row: label, share, nearest vertex, weight, whether it was seen.
PER_IMAGE = 25


def checkpoint_bytes(
    recipe: Recipe, *, image_size: int, num_images: int, num_classes: int
) -> int | None:
    """Size (bytes) of a checkpoint: weights, optimizer state, bank or vertex scores, labels, an EMA.

    The network is built on torch's meta device, without memory.

    Args:
        recipe: The run; weights to start from are not read.
        image_size: Side of the input (pixels).
        num_images: Number of images N.
        num_classes: Number of classes of a supervised run.

    Returns:
        None for a library's backbone that cannot be built on the meta device.

    Raises:
        ValueError: If the network cannot be built.
    """
    network = _meta_network(recipe, image_size, num_classes)
    if network is None:
        return None
    trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    width = getattr(network, "embedding_dim", 0)
    remembered = _remembered(recipe, num_images, width) + _averaged(recipe, network)
    return _bytes(network) + COPIES[recipe.optim.name] * trained + remembered


def _meta_network(recipe: Recipe, image_size: int, num_classes: int) -> nn.Module | None:
    drawn = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": None})})
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            # The weights of a teacher are read, and discarded.
            warnings.filterwarnings("ignore", message=".*from a non-meta parameter")
            if recipe.finetune is None:
                return build_method(drawn, image_size)
            return build_network(drawn, image_size, num_classes)
    except RuntimeError as error:
        if "meta" in str(error):  # it read a value while it was built
            return None
        raise


def _bytes(network: nn.Module) -> int:
    tensors = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _remembered(recipe: Recipe, num_images: int, width: int) -> int:
    tracked = min(MAX_TRACKED, num_images) * width * FLOAT
    if recipe.harmonize is None:
        return tracked
    gh, vertices = recipe.harmonize, recipe.harmonize.vertices
    bank = 0 if gh.clean else width
    row = bank if gh.population == "faiss" else vertices
    return tracked + num_images * (row * FLOAT + PER_IMAGE) + vertices * width * FLOAT


def _averaged(recipe: Recipe, network: nn.Module) -> int:
    """Bytes of the EMA of a supervised run's weights."""
    averaged = recipe.finetune is not None and recipe.finetune.ema is not None
    return _bytes(network) if averaged else 0
