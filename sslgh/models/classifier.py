"""Last layers of supervised training: features (N, F) to class scores (N, C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.functional.checks import in_float32


class CosineClassifier(nn.Module):
    """Cosines between the features and one weight per class, times a scale.

    The default scale and the start, directions uniform on the sphere, are those of BCL's code.

    Args:
        features: F.
        classes: C.
        scale: Factor of the cosines; the range of the logits.

    Attributes:
        weight: Shape (C, F), of any length.

    Raises:
        ValueError: If the scale is not positive.

    Examples:
        >>> classify = CosineClassifier(2, 2)
        >>> _ = nn.init.eye_(classify.weight)
        >>> classify(torch.tensor([[5.0, 0.0]])).tolist()
        [[30.0, 0.0]]
    """

    def __init__(self, features: int, classes: int, *, scale: float = 30.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.weight = nn.Parameter(F.normalize(torch.randn(classes, features)))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits in -scale..scale, float32 under autocast too."""
        return self.scale * _cosines(features, self.weight)


@in_float32
def _cosines(features: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.normalize(features), F.normalize(weight))


def linear_classifier(features: int, classes: int) -> nn.Linear:
    """An affine layer whose weights start as N(0, 0.01^2) and its biases at 0.

    The weights are those of Logit Adjustment's public code. At the start every class is almost equally
    likely, so that the first steps follow the labels and not the draw of the head.
    """
    layer = nn.Linear(features, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
