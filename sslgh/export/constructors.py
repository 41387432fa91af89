"""How timm and torchvision build the network of a run: by public constructors, or not at all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslgh.export.source import Source, drawn_images
from sslgh.models.adapters import ADAPTFORMER
from sslgh.models.backbones import LAYERS
from sslgh.models.classifier import CosineClassifier
from sslgh.models.library_backbones import TIMM, TORCHVISION, UNFIT
from sslgh.models.patch_backbones import FAMILIES, needs_stem, timm_arguments

CLOSE = 1e-4


class Constructor(NamedTuple):
    """Name of a library's model, and the keyword arguments that it is built with."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """The arguments of a call, as code."""
        return ", ".join([repr(self.name), *(f"{k}={v!r}" for k, v in self.arguments.items())])


def timm_constructors(source: Source) -> list[Constructor]:
    """What in timm may be the network of a run, most likely first; none if nothing can."""
    name, size = source.card["backbone"], source.size
    if name in FAMILIES:
        patch = source.card["patch"]
        fits = not needs_stem(name, patch)
        return [Constructor(*timm_arguments(name, patch=patch, image_size=size))] if fits else []
    if name.startswith(TIMM):
        kind = name.removeprefix(TIMM)
        return [Constructor(kind, {}), Constructor(kind, {"img_size": size})]
    kind = name.removeprefix(TORCHVISION)
    return [Constructor(kind, {})] if kind in LAYERS and _is_usual(source) else []


def torchvision_constructors(source: Source) -> list[Constructor]:
    """What in torchvision may be the network of a run, most likely first; none if nothing can."""
    name, size = source.card["backbone"], source.size
    kind = name.removeprefix(TORCHVISION)
    if name.startswith(TORCHVISION):
        sides: list[dict[str, Any]] = [{}, {"image_size": size}, {"input_size": (size, size)}]
        return [Constructor(kind, side) for side in sides]
    kind = name.removeprefix(TIMM)
    return [Constructor(kind, {})] if kind in LAYERS and _is_usual(source) else []


def _is_usual(source: Source) -> bool:
    """Whether a ResNet is the published one; those of the libraries always are."""
    ours = source.card["backbone"] in LAYERS
    return not ours or (source.card["stem"] == "imagenet" and source.card["width"] == 1)


class Held(NamedTuple):
    """A library's model with the weights of a run, and how it was built."""

    constructor: Constructor
    model: nn.Module


def held_by(
    library: str,
    source: Source,
    constructors: list[Constructor],
    build: Callable[[Constructor], tuple[nn.Module, dict[str, Tensor]]],
) -> Held:
    """The first of several models that takes all weights of a run and gives its outputs.

    Args:
        library: Name of the library, for the message.
        source: The network.
        constructors: Ways to build the model.
        build: The model, and the state dict for it.

    Raises:
        ValueError: If none does.
    """
    if isinstance(source.classifier, CosineClassifier):
        raise ValueError(
            f"{library} has no classifier of cosines, which {source.run} was finetuned with; export it to onnx, or its "
            "backbone alone: --features"
        )
    images = torch.stack([source.preprocess(image) for image in drawn_images(source.size)])
    for constructor in constructors:
        try:
            model, state = build(constructor)
            model.load_state_dict(state)
            with torch.no_grad():
                found = model.eval()(images)
        except UNFIT:
            continue
        if torch.is_tensor(found) and torch.allclose(found, source.outputs(images), atol=CLOSE):
            return Held(constructor, model)
    card = source.card
    shape = "" if card["backbone"].startswith((TIMM, TORCHVISION)) else _shape(card)
    shape += " with an AdaptFormer, which cannot be merged," if ADAPTFORMER in card else ""
    raise ValueError(
        f"{library} builds no {card['backbone']}{shape} for {source.size} pixels; export it to onnx, or train a backbone "
        "that the library has (model.backbone=timm:NAME or torchvision:NAME)"
    )


def _shape(card: dict[str, Any]) -> str:
    if card["backbone"] in FAMILIES:
        return f" with patches of {card['patch']} pixels"
    return f" with the {card['stem']} stem and {card['width']} times the channels"
