"""A network as a folder for the Hugging Face hub: config.json and safetensors of timm, and a model card.

timm loads it by ``local-dir:`` or, once it is uploaded, by ``hf-hub:``; transformers by its wrapper of timm.
"""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from sslgh.export.exported import Exported, Loading
from sslgh.export.model_card import model_card
from sslgh.export.preprocessing_code import timm_config, timm_lines
from sslgh.export.source import Source
from sslgh.export.timm_export import OUTPUTS, WEIGHTS, timm_model

log = logging.getLogger(__name__)

CONFIG, CARD = "config.json", "README.md"
# What the card loads: the name that the folder will have on the hub, not its place on this machine.
ON_THE_HUB = "USER/NAME"


def export_hugging_face(source: Source, folder: Path) -> Exported:
    """Write the folder; raises ValueError as `held_by`."""
    held = timm_model(source)
    architecture = str(held.model.pretrained_cfg["architecture"])  # type: ignore[index]
    kept = {k: held.model.pretrained_cfg[k] for k in ("first_conv", "classifier")}  # type: ignore[index]
    classes = len(source.class_names)
    config = {
        "architecture": architecture,
        "num_classes": classes,
        **timm_config(source.preprocess),
        **kept,
    }
    # The published config would send a reader to the published weights.
    held.model.pretrained_cfg = config  # type: ignore[assignment]
    settings = {"pretrained_cfg": config, "num_classes": classes}
    if source.class_names:
        settings["label_names"] = list(source.class_names)
    folder.mkdir(parents=True, exist_ok=True)
    save_for_hf(held.model, str(folder), model_config=settings, safe_serialization=True)
    _set_arguments(folder / CONFIG, held.constructor.arguments)
    loadings = [_by_timm(folder), *_by_transformers(source, folder)]
    text = model_card(source, _timm_lines(f"'hf-hub:{ON_THE_HUB}'"))
    (folder / CARD).write_text(text, encoding="utf-8")
    return Exported(folder, [CONFIG, WEIGHTS, CARD], loadings)


def _set_arguments(path: Path, arguments: dict[str, Any]) -> None:
    """Keep the arguments that the network is built with, and no others.

    timm adds the number of classes, which transformers gives a second time.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("model_args", None)
    config |= {"model_args": arguments} if arguments else {}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _by_timm(folder: Path) -> Loading:
    lines = _timm_lines("f'local-dir:{here}'")
    return Loading("timm, from the folder for the hub", lines, OUTPUTS, folder)


def _timm_lines(name: str) -> list[str]:
    return [
        "import timm",
        "import torch",
        "from PIL import ImageOps",
        "",
        f"model = timm.create_model({name}, pretrained=True).eval()",
        "settings = timm.data.resolve_model_data_config(model)",
        *timm_lines("**settings, is_training=False"),
    ]


def _by_transformers(source: Source, folder: Path) -> list[Loading]:
    if importlib.util.find_spec("transformers") is None:
        log.warning(
            "transformers is not installed, so its loading is not checked; pip install '.[export]'"
        )
        return []
    kind = "AutoModelForImageClassification" if source.class_names else "AutoModel"
    lines = [
        "from PIL import ImageOps",
        f"from transformers import AutoImageProcessor, {kind}",
        "",
        f"model = {kind}.from_pretrained(str(here)).eval()",
        "processor = AutoImageProcessor.from_pretrained(str(here))",
    ]
    output = "logits" if source.class_names else "pooler_output"
    upright = "[ImageOps.exif_transpose(image) for image in images]"
    inputs = f"**processor({upright}, return_tensors='pt')"
    return [Loading("transformers", lines, f"model({inputs}).{output}.detach()", folder)]
