"""A network for timm: a file of weights, and the lines that build it and its preprocessing."""

from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from torch import Tensor, nn

from sslgh.export.constructors import Constructor, Held, held_by, timm_constructors
from sslgh.export.exported import Exported, Loading
from sslgh.export.preprocessing_code import timm_config, timm_lines
from sslgh.export.source import Source

WEIGHTS = "model.safetensors"
OUTPUTS = "model(torch.stack([preprocess(image) for image in images])).detach()"


def timm_model(source: Source) -> Held:
    """The network as a model of timm; raises as `held_by`."""

    def build(constructor: Constructor) -> tuple[nn.Module, dict[str, Tensor]]:
        create: Any = timm.create_model
        classes = len(source.class_names)
        model: nn.Module = create(constructor.name, num_classes=classes, **constructor.arguments)
        state = dict(source.backbone.state_dict())
        if source.classifier is not None:
            config: Any = model.pretrained_cfg
            for name, value in source.classifier.state_dict().items():
                state[f"{config['classifier']}.{name}"] = value
        return model, state

    return held_by("timm", source, timm_constructors(source), build)


def export_timm(source: Source, folder: Path) -> Exported:
    """Write the weights; raises ValueError as `held_by`."""
    held = timm_model(source)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(held.model.state_dict(), folder / WEIGHTS)
    call = f"{held.constructor}, num_classes={len(source.class_names)}"
    config = ", ".join(f"{k}={v!r}" for k, v in timm_config(source.preprocess).items())
    lines = [
        "import timm",
        "import torch",
        "from PIL import ImageOps",
        "",
        f"model = timm.create_model({call}, checkpoint_path=str(here / {WEIGHTS!r})).eval()",
        *timm_lines(config),
    ]
    return Exported(folder, [WEIGHTS], [Loading("timm", lines, OUTPUTS, folder)])
