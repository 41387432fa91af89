"""torchvision's ResNets with a CIFAR stem and a width multiplier; parameter names stay torchvision's."""

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


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
        stem_channels = self._scaled(64)
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, stem_channels, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
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
