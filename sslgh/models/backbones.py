"""Backbones by name: images (N, 3, H, W) to features (N, F)."""

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sslgh.models.cifar_resnet import BLOCKS, CifarResNet
from sslgh.models.library_backbones import (
    TIMM,
    TORCHVISION,
    check_side,
    library_backbone,
    resize_library_backbone,
)
from sslgh.models.patch_backbones import FAMILIES, build_patched, patch_for, resize_patched
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.schema import Model

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
OURS = (*LAYERS, *BLOCKS)
# What the name of a module that a user has built begins with.
OWN = "own:"


def build_backbone(
    name: str,
    *,
    stem: str = "cifar",
    width: float = 1.0,
    patch: int | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A backbone without its classifier, with attribute ``num_features`` (F).

    Args:
        name: resnet18, resnet34, resnet50 (with ``stem`` and ``width``), resnet20, resnet32, resnet56
            (CIFAR's, with ``width``), vit_tiny, vit_small, vit_base, vit_large, swin_tiny, convnext_tiny
            (with ``patch``), ``timm:NAME`` or ``torchvision:NAME`` (with ``pretrained``).
        stem: "cifar" or "imagenet".
        width: Channel multiplier.
        patch: Side of a patch (pixels), or None for one that suits the image.
        image_size: Side of the input (pixels), for networks that must know it.
        pretrained: Load the library's default weights, from the network or a warm cache.

    Raises:
        ValueError: If the name is unknown, an option does not apply, or a library's network makes no
            features of such images.
    """
    if name in LAYERS and patch is None and not pretrained:
        return ScaledResNet(name, stem=stem, width=width)
    if name in BLOCKS and patch is None and not pretrained and stem == "cifar":
        return CifarResNet(name, width=width)
    if name in FAMILIES and width == 1.0 and not pretrained:
        return build_patched(name, patch=patch, image_size=image_size)
    if name.startswith((TIMM, TORCHVISION)) and width == 1.0 and patch is None:
        return library_backbone(name, image_size=image_size, pretrained=pretrained)
    raise ValueError(_misfit(name, stem, width, patch))


def drawn_backbone(model: Model, image_size: int) -> nn.Module:
    """The backbone of a recipe, drawn by torch's generator, with ``num_features`` and ``preprocessing``.

    Raises:
        ValueError: As `build_backbone`.
    """
    shape = model.model_dump(include={"stem", "width", "patch"})
    backbone = build_backbone(model.backbone, **shape, image_size=image_size)
    backbone.preprocessing = Preprocessing().at(image_size)  # type: ignore[assignment]
    return backbone


class ScaledResNet(ResNet):  # type: ignore[misc]
    """ResNet (arXiv:1512.03385) without classifier: (N, 3, H, W) -> (N, F).

    Args:
        name: A key of ``LAYERS``.
        stem: "imagenet": 7x7 stride 2 and pooling; "cifar": 3x3 stride 1 without pooling, as
            the GH code has it for 32 pixels.
        width: Multiplier of all channels, rounded to multiples of 8 where below 1.
    """

    def __init__(self, name: str, *, stem: str = "cifar", width: float = 1.0) -> None:
        block, layers = LAYERS[name]
        self.width = width
        super().__init__(block, layers)
        side, stride = (3, 1) if stem == "cifar" else (7, 2)
        stem_channels = self._scaled(64)
        self.conv1 = nn.Conv2d(3, stem_channels, side, stride, padding=side // 2, bias=False)
        if stem == "cifar":
            self.maxpool = nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.num_features: int = self._scaled(512) * block.expansion
        self.fc = nn.Identity()

    def _scaled(self, channels: int) -> int:
        return max(8, round(channels * self.width / 8) * 8)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage follows a stem that super() built at full width
            self.inplanes = self._scaled(64)
        layer: nn.Sequential = super()._make_layer(block, self._scaled(planes), *args, **kwargs)
        return layer


def _misfit(name: str, stem: str, width: float, patch: int | None) -> str:
    """Why no backbone is built: its name is unknown, or an option does not apply to it."""
    if name.startswith(OWN):
        return (
            f"{name} is a module of your own, which only you can build; in Python, "
            "load_backbone(RUN, module=YOURS) loads its weights, sslgh.pretrain_backbone(RECIPE, backbone=YOURS) trains it"
        )
    if name not in (*OURS, *FAMILIES) and not name.startswith((TIMM, TORCHVISION)):
        known = ", ".join((*OURS, *FAMILIES))
        return f"unknown backbone {name!r}; use {known}, timm:NAME or torchvision:NAME"
    if width != 1.0 and name not in OURS:
        return f"model.width applies to {', '.join(OURS)}, not to {name}; set model.width: 1"
    if patch is not None and name not in FAMILIES:
        return f"model.patch applies to {', '.join(FAMILIES)}, not to {name}; leave model.patch out"
    if stem != "cifar" and name in BLOCKS:
        return (
            f"{name} is a ResNet for small images and has no {stem} stem; set model.stem: cifar, "
            f"or model.backbone: resnet18"
        )
    library = "timm: or torchvision:"
    if name in FAMILIES:
        library = TIMM + FAMILIES[name][0]
    elif name in LAYERS:
        library = TORCHVISION + name
    return f"{name} has no pretrained weights here; use {library}"


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
        ValueError: If patches do not fill the image, or a library's network takes no images of that side.
    """
    if name in FAMILIES:
        assert patch is not None
        resize_patched(backbone, name, patch=patch, image_size=image_size)
    elif name.startswith((TIMM, TORCHVISION)):
        resize_library_backbone(backbone, name, image_size)


def check_local_crops(backbone: nn.Module, name: str, side: int) -> None:
    """Refuse local crops of a side (pixels) that a library's network does not take.

    Raises:
        ValueError: One sentence with the remedy.
    """
    if name.startswith((TIMM, TORCHVISION)):
        remedy = (
            "set data.augment.local_crops: 0, or choose a backbone that takes images of any size"
        )
        check_side(backbone, name, side, remedy=remedy)
