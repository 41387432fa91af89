"""Preprocessing of a network as code and settings of other libraries."""

import math
from typing import Any

from sslgh.preprocessing import Preprocessing


def timm_config(preprocess: Preprocessing) -> dict[str, Any]:
    """Settings of `timm.data.create_transform`.

    Examples:
        >>> timm_config(Preprocessing())["crop_pct"]
        0.875
    """
    size, resize = preprocess.size, preprocess.resize
    share = size / resize
    if math.floor(size / share) != resize:  # timm divides, and rounds down
        share = math.nextafter(share, 0)
    return {
        "input_size": (3, size, size),
        "interpolation": preprocess.interpolation,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "crop_pct": share,
        "crop_mode": "squash" if preprocess.squash else "center",
    }


def timm_lines(arguments: str) -> list[str]:
    """Lines that define ``preprocess`` of a PIL image by timm, which does not turn photos upright by itself."""
    return [
        f"preprocess = timm.data.create_transform({arguments})",
        "preprocess.transforms.insert(0, ImageOps.exif_transpose)",
    ]


def torchvision_lines(preprocess: Preprocessing) -> list[str]:
    """Lines that define ``preprocess`` of a PIL image by torchvision."""
    resize: Any = preprocess.resize
    resize = (resize, resize) if preprocess.squash else resize
    return [
        "from PIL import ImageOps",
        "from torchvision.transforms import InterpolationMode, v2",
        "",
        "preprocess = v2.Compose([",
        "    ImageOps.exif_transpose,",
        "    v2.RGB(),",
        f"    v2.Resize({resize}, interpolation=InterpolationMode.{preprocess.interpolation.upper()}),",
        f"    v2.CenterCrop({preprocess.size}),",
        "    v2.ToImage(),",
        "    v2.ToDtype(torch.float32, scale=True),",
        f"    v2.Normalize(mean={list(preprocess.mean)}, std={list(preprocess.std)}),",
        "])",
    ]


def pillow_lines(preprocess: Preprocessing) -> list[str]:
    """Lines that define ``preprocess`` of a PIL image to uint8 (3, S, S) by Pillow and NumPy alone."""
    size, resize = preprocess.size, preprocess.resize
    sides = (
        f"({resize}, {resize})"
        if preprocess.squash
        else f"[int({resize} * side / min(image.size)) for side in image.size]"
    )
    return [
        "def preprocess(image):",
        '    image = ImageOps.exif_transpose(image).convert("RGB")',
        f"    image = image.resize({sides}, Image.Resampling.{preprocess.interpolation.upper()})",
        f"    left, top = (round((side - {size}) / 2) for side in image.size)",
        f"    image = image.crop((left, top, left + {size}, top + {size}))",
        "    return numpy.asarray(image).transpose(2, 0, 1)",
    ]
