"""Backbones by name: images (N, 3, H, W) to features (N, F)."""

import torch
import torchvision
from torch import nn

from sslgh.models.cifar_resnet import BLOCKS, CifarResNet
from sslgh.models.patch_backbones import FAMILIES, build_patched, patch_for, resize_patched
from sslgh.models.resnet import LAYERS, ScaledResNet

TIMM, TORCHVISION = "timm:", "torchvision:"
OURS = (*LAYERS, *BLOCKS)


def build_backbone(
    name: str,
    *,
    stem: str = "cifar",
    width: float = 1.0,
    patch: int | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A backbone without its classifier.

    Args:
        name: resnet18, resnet34, resnet50 (with ``stem`` and ``width``), resnet20, resnet32, resnet56
            (CIFAR's, with ``width``), vit_tiny, vit_small, vit_base, vit_large, swin_tiny, convnext_tiny
            (with ``patch``), ``timm:NAME`` or ``torchvision:NAME``.
        stem: "cifar" or "imagenet"; of resnet18, resnet34 and resnet50.
        width: Channel multiplier; of all the ResNets named above.
        patch: Side of a patch (pixels), or None for one that suits the image; of ViT, Swin and ConvNeXt.
        image_size: Side of the input (pixels), for transformers that must know it.
        pretrained: Load the library's default weights (timm:, torchvision:; needs a network
            or a warm cache).

    Returns:
        A module with attribute ``num_features`` (F).

    Raises:
        ValueError: If the name is unknown or an option does not apply.
    """
    _check_options(name, stem, width, patch, pretrained)
    if name in LAYERS:
        return ScaledResNet(name, stem=stem, width=width)
    if name in BLOCKS:
        return CifarResNet(name, width=width)
    if name in FAMILIES:
        return build_patched(name, patch=patch, image_size=image_size)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), image_size, pretrained)
    return _torchvision(name.removeprefix(TORCHVISION), pretrained)


def _check_options(name: str, stem: str, width: float, patch: int | None, pretrained: bool) -> None:
    library = name.startswith((TIMM, TORCHVISION))
    if not library and name not in (*OURS, *FAMILIES):
        raise ValueError(
            f"unknown backbone {name!r}; use {', '.join((*OURS, *FAMILIES))}, timm:NAME or torchvision:NAME"
        )
    if width != 1.0 and name not in OURS:
        raise ValueError(
            f"model.width applies to {', '.join(OURS)}, not to {name}; set model.width: 1"
        )
    if patch is not None and name not in FAMILIES:
        raise ValueError(
            f"model.patch applies to {', '.join(FAMILIES)}, not to {name}; leave model.patch out"
        )
    if stem != "cifar" and name in BLOCKS:
        raise ValueError(
            f"{name} is a ResNet for small images and has no {stem} stem; set model.stem: cifar, "
            f"or model.backbone: resnet18"
        )
    if pretrained and not library:
        raise ValueError(f"{name} has no pretrained weights here; use {_pretrained_name(name)}")


def _pretrained_name(name: str) -> str:
    if name in FAMILIES:
        return TIMM + FAMILIES[name][0]
    return TORCHVISION + name if name in LAYERS else "timm: or torchvision:"


def resolve_patch(name: str, *, patch: int | None, image_size: int) -> int | None:
    """The patch side (pixels) that `build_backbone` takes; None where a backbone has none."""
    return patch or patch_for(name, image_size) if name in FAMILIES else None


def resize_backbone(backbone: nn.Module, name: str, *, patch: int | None, image_size: int) -> None:
    """Make a trained backbone one for another image side; positions of tokens are interpolated.

    Args:
        backbone: Changed in place; a convolutional one stays as it is.
        name: Name that it was built by.
        patch: Patch side (pixels), if it has one.
        image_size: The new side (pixels).

    Raises:
        ValueError: If patches do not fill the image.
    """
    if name in FAMILIES:
        assert patch is not None
        resize_patched(backbone, name, patch=patch, image_size=image_size)
    elif name.startswith(TIMM):
        _set_input_size(backbone, image_size)


def _set_input_size(model: nn.Module, image_size: int) -> None:
    resize = getattr(model, "set_input_size", None)  # transformers only
    if callable(resize):
        resize(img_size=image_size)


def _timm(name: str, image_size: int | None, pretrained: bool) -> nn.Module:
    import timm  # noqa: PLC0415 - takes a second

    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:3]
        raise ValueError(
            f"timm has no model {name!r}" + (f"; it has {', '.join(near)}" if near else "")
        )
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    if image_size is not None:
        _set_input_size(model, image_size)
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
