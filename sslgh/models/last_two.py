"""Features of the last two layers of a backbone."""

from os.path import commonpath

import torch
from torch import Tensor, nn

from sslgh.models.layers import HEADS, layers_by_name
from sslgh.models.library_backbones import pooled
from sslgh.preprocessing import Preprocessing


class LastTwo(nn.Module):
    """The mean output of the layer before the last, next to the features: (N, 3, S, S) to (N, E + F).

    Earlier features help rare classes far from photos, claims arXiv:2604.03687.

    Args:
        backbone: (N, 3, S, S) to (N, F), of which this shares the weights.

    Raises:
        ValueError: If the order of its layers is not known.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        try:
            self.before_last = _layer_before_last(backbone)
        except ValueError as error:
            raise ValueError(f"probe features last-two: {error}") from None
        self.backbone = backbone
        self.preprocessing = Preprocessing.of(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Both features, (N, E + F)."""
        seen: list[Tensor] = []
        layer = self.backbone.get_submodule(self.before_last)
        handle = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            features = self.backbone(images)
        finally:
            handle.remove()
        earlier = seen[0]
        if earlier.ndim > 2:
            channels_last = (
                earlier.ndim == 3 or getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            )
            earlier = pooled(channels_last, layer, (), earlier)
        return torch.cat([earlier.to(features.dtype), features], dim=1)


def _layer_before_last(backbone: nn.Module) -> str:
    """Name of the module that holds the layer before the last."""
    layers = layers_by_name(backbone)
    number = layers[HEADS] - 2
    names = [name.replace(".", "/") for name, layer in layers.items() if layer == number]
    # The folder, so to speak, that all of its parameters lie in.
    shared = commonpath([name.rpartition("/")[0] for name in names]) if names else ""
    if number < 1 or not shared:
        raise ValueError(f"{type(backbone).__name__} has no layer of its own before the last")
    return shared.replace("/", ".")
