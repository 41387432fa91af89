"""Backbones by name: images (N, 3, H, W) to features (N, F)."""

import torch
import torchvision
from torch import nn

from sslgh.models.cifar_resnet import BLOCKS, CifarResNet
from sslgh.models.resnet import LAYERS, ScaledResNet

TIMM, TORCHVISION = "timm:", "torchvision:"
OURS = (*LAYERS, *BLOCKS)


def build_backbone(
    name: str,
    *,
    stem: str = "cifar",
    width: float = 1.0,
    image_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A backbone without its classifier.

    Args:
        name: resnet18, resnet34, resnet50 (with ``stem`` and ``width``), resnet20, resnet32, resnet56
            (CIFAR's, with ``width``), ``timm:NAME`` or ``torchvision:NAME``.
        stem: "cifar" or "imagenet"; of resnet18, resnet34 and resnet50.
        width: Channel multiplier; of all the ResNets named above.
        image_size: Side of the input (pixels), for transformers that must know it.
        pretrained: Load the library's default weights (timm:, torchvision:; needs a network
            or a warm cache).

    Returns:
        A module with attribute ``num_features`` (F).

    Raises:
        ValueError: If the name is unknown, timm is missing, or an option does not apply.
    """
    if name in LAYERS:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights here; use torchvision:{name}")
        return ScaledResNet(name, stem=stem, width=width)
    if name in BLOCKS:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights here; use timm: or torchvision:")
        if stem != "cifar":
            raise ValueError(
                f"{name} is a ResNet for small images and has no {stem} stem; set model.stem: cifar, "
                f"or model.backbone: resnet18"
            )
        return CifarResNet(name, width=width)
    if not name.startswith((TIMM, TORCHVISION)):
        raise ValueError(
            f"unknown backbone {name!r}; use {', '.join(OURS)}, timm:NAME or torchvision:NAME"
        )
    if width != 1.0:
        raise ValueError(
            f"model.width applies to {', '.join(OURS)}, not to {name}; set model.width: 1"
        )
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), image_size, pretrained)
    return _torchvision(name.removeprefix(TORCHVISION), pretrained)


def _timm(name: str, image_size: int | None, pretrained: bool) -> nn.Module:
    try:
        import timm  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise ValueError("timm: backbones need timm; run pip install 'sslgh[timm]'") from None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:3]
        raise ValueError(
            f"timm has no model {name!r}" + (f"; it has {', '.join(near)}" if near else "")
        )
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    set_input_size = getattr(model, "set_input_size", None)  # transformers only
    if image_size is not None and callable(set_input_size):
        set_input_size(img_size=image_size)
    return model


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    if name not in torchvision.models.list_models(torchvision.models):
        raise ValueError(f"torchvision has no classification model {name!r}")
    model: nn.Module = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    for head in ("fc", "classifier", "heads", "head"):
        if hasattr(model, head):
            setattr(model, head, nn.Identity())
            break
    was_training = model.training
    with torch.no_grad():
        features: torch.Tensor = model.eval()(torch.zeros(1, 3, 224, 224))
    model.num_features = features.shape[1]  # type: ignore[assignment]
    return model.train(was_training)
