"""A network for torchvision: a file of weights, and the lines that build it and its preprocessing."""

from pathlib import Path

import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from sslgh.export.constructors import Constructor, held_by, torchvision_constructors
from sslgh.export.exported import Exported, Loading
from sslgh.export.preprocessing_code import torchvision_lines
from sslgh.export.source import Source
from sslgh.export.timm_export import OUTPUTS, WEIGHTS
from sslgh.models.library_backbones import classifying_layers


def export_torchvision(source: Source, folder: Path) -> Exported:
    """Write the weights; raises ValueError as `held_by`."""

    def build(constructor: Constructor) -> tuple[nn.Module, dict[str, Tensor]]:
        model: nn.Module = torchvision.models.get_model(
            constructor.name, weights=None, **constructor.arguments
        )
        state = dict(source.backbone.state_dict())
        layers = classifying_layers(model)
        for name in layers:
            model.set_submodule(name, nn.Identity())
        if source.classifier is not None:
            classes, features = source.classifier.weight.shape
            model.set_submodule(layers[-1], nn.Linear(features, classes))
            for name, value in source.classifier.state_dict().items():
                state[f"{layers[-1]}.{name}"] = value
        return model, state

    held = held_by("torchvision", source, torchvision_constructors(source), build)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(held.model.state_dict(), folder / WEIGHTS)
    kept = torchvision.models.get_model(held.constructor.name, weights=None)
    lines = [
        "import torch",
        "import torchvision",
        "from safetensors.torch import load_file",
        *torchvision_lines(source.preprocess),
        "",
        f"model = torchvision.models.get_model({held.constructor}, weights=None)",
        *_head_lines(source, classifying_layers(kept)),
        f"model.load_state_dict(load_file(here / {WEIGHTS!r}))",
        "model.eval()",
    ]
    return Exported(folder, [WEIGHTS], [Loading("torchvision", lines, OUTPUTS, folder)])


def _head_lines(source: Source, layers: list[str]) -> list[str]:
    new = ["torch.nn.Identity()"] * len(layers)
    if source.classifier is not None:
        classes, features = source.classifier.weight.shape
        new[-1] = f"torch.nn.Linear({features}, {classes})"
    names = [name.replace(".", "[") + "]" * ("." in name) for name in layers]
    return [f"model.{name} = {layer}" for name, layer in zip(names, new, strict=True)]
