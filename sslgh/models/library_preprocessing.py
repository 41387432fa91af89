"""Preprocessing that timm and torchvision state for their pretrained weights."""

import math
from typing import Any, cast

import torchvision
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from sslgh.models.library_backbones import TRANSFORMED, check_torchvision, timm_config
from sslgh.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)


def timm_preprocessing(name: str) -> Preprocessing:
    """What the default weights of a timm model, or those of a tag NAME.TAG, were evaluated with.

    Raises:
        ValueError: If there is no such model, or its weights want a border around images, which nothing here adds.
    """
    from timm.data.config import resolve_data_config  # noqa: PLC0415 - takes a second

    config, resolve = timm_config(name), cast("Any", resolve_data_config)
    return from_timm(name, resolve(pretrained_cfg=config.to_dict() if config else {}))


def from_timm(name: str, config: dict[str, Any]) -> Preprocessing:
    """The preprocessing of timm's data config, as ``resolve_data_config`` gives it; raises as `timm_preprocessing`."""
    if config["crop_mode"] == "border":
        raise ValueError(
            f"the weights of {name} want images with a border; take others of its family"
        )
    size = int(config["input_size"][-1])
    return Preprocessing(
        size=size,
        crop_of=(size, math.floor(size / config["crop_pct"])),
        interpolation=str(config["interpolation"]),
        squash=config["crop_mode"] == "squash",
        mean=config["mean"],
        std=config["std"],
    )


def torchvision_preprocessing(name: str) -> Preprocessing:
    """What the default weights of a torchvision classifier were evaluated with; ValueError if there is none."""
    check_torchvision(name)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert isinstance(preset, ImageClassification)
    names = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}
    return Preprocessing(
        size=preset.crop_size[0],
        crop_of=(preset.crop_size[0], preset.resize_size[0]),
        interpolation=names[preset.interpolation],
        mean=HALF if name in TRANSFORMED else tuple(preset.mean),
        std=HALF if name in TRANSFORMED else tuple(preset.std),
    )
