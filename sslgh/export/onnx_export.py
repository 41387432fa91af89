"""A network as one ONNX file: uint8 pixels in, normalization inside, any number of images at once."""

import importlib.util
import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from sslgh.export.exported import Exported, Loading
from sslgh.export.preprocessing_code import pillow_lines
from sslgh.export.source import Source

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class PixelNetwork(nn.Module):
    """uint8 pixels (N, 3, S, S) to logits (N, C), or to features (N, F) without a classifier."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.backbone, self.classifier = source.backbone, source.classifier
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            values = torch.tensor(getattr(source.preprocess, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize, then what the network does."""
        features: Tensor = self.backbone((pixels.float() / 255 - self.mean) / self.std)
        return features if self.classifier is None else self.classifier(features)


def export_onnx(source: Source, folder: Path) -> Exported:
    """Write the file, with the preprocessing and the names of the classes among its metadata.

    Raises:
        ValueError: If a package is missing, or ONNX has no operators for the network.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"onnx needs {package}, which is not installed; pip install '.[export]'"
            )
    folder.mkdir(parents=True, exist_ok=True)
    output = "logits" if source.class_names else "features"
    _write(source, folder / FILE, output)
    lines = [
        "import numpy",
        "import onnxruntime",
        "from PIL import Image, ImageOps",
        "",
        f"session = onnxruntime.InferenceSession(str(here / {FILE!r}), providers=['CPUExecutionProvider'])",
        "",
        *pillow_lines(source.preprocess),
    ]
    run = "session.run(None, {'pixels': numpy.stack([preprocess(i) for i in %s])})[0]"
    # One image, and the others: the number of images is free.
    both = f"numpy.concatenate([{run % 'images[:1]'}, {run % 'images[1:]'}])"
    return Exported(folder, [FILE], [Loading("onnxruntime", lines, both, folder)])


def _write(source: Source, path: Path, output: str) -> None:
    import onnx  # noqa: PLC0415 - optional

    pixels = torch.zeros(2, 3, source.size, source.size, dtype=torch.uint8)
    # Its warnings and log are of its own steps.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                PixelNetwork(source).eval(),
                (pixels,),
                path,
                input_names=["pixels"],
                output_names=[output],
                dynamic_shapes={"pixels": {0: torch.export.Dim("images", min=1)}},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise ValueError(
                f"ONNX has no operators for {source.card['backbone']}: {reason}"
            ) from None
    model = onnx.load(path)
    held = {"class_names": list(source.class_names), "preprocessing": source.preprocess._asdict()}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in held.items()})
    onnx.save(model, path)
