"""The ResNets for CIFAR of the ResNet paper, section 4.2 (arXiv:1512.03385)."""

import torch.nn.functional as F
from torch import Tensor, nn

# Blocks of a stage: the paper's n, for 6n + 2 layers with the classifier.
BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet56": 9}


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels without classifier: (N, 3, H, W) -> (N, F).

    Shortcuts have no parameters (option A). ``resnet32`` holds 0.46 M and gives 64 features.
    Convolutions start as in He et al. (arXiv:1502.01852), with the fan of their inputs.

    Args:
        name: A key of ``BLOCKS``.
        width: Multiplier of all channels, rounded to multiples of 8.

    Attributes:
        num_features: F.

    Examples:
        >>> sum(p.numel() for p in CifarResNet("resnet32").parameters())
        463504
    """

    def __init__(self, name: str, *, width: float = 1.0) -> None:
        super().__init__()
        one, two, three = (max(8, round(c * width / 8) * 8) for c in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, one, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(one)
        self.layer1 = _stage(one, one, BLOCKS[name], stride=1)
        self.layer2 = _stage(one, two, BLOCKS[name], stride=2)
        self.layer3 = _stage(two, three, BLOCKS[name], stride=2)
        self.num_features: int = three
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features, the mean over the last stage's pixels."""
        x = F.relu(self.bn1(self.conv1(x)))
        pixels: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return pixels.mean(dim=(2, 3))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        # The paper does not say where the added zeros stand: half on each side, as LDAM's code has it.
        added = outputs - inputs
        self.padding = (0, 0, 0, 0, added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        kept = x[:, :, :: self.stride, :: self.stride]
        # Padding by nothing would still copy.
        shortcut = F.pad(kept, self.padding) if any(self.padding) else kept
        return F.relu(residual + shortcut)


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(inputs, outputs, stride), *rest)
