"""Features of the last two layers of a backbone."""

from typing import Any

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
        ValueError: If the order of its layers is not known; in `forward`, if that layer gives no tensor.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        try:
            self.before_last = _modules_before_last(backbone)
        except ValueError as error:
            raise ValueError(f"probe features last-two: {error}") from None
        self.backbone = backbone
        self.preprocessing = Preprocessing.of(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Both features, (N, E + F)."""
        seen: list[tuple[nn.Module, Any]] = []

        def keep(layer: nn.Module, _: Any, output: Any) -> None:
            # The last that is called holds the others, or follows them.
            seen[:] = [(layer, output[0] if isinstance(output, tuple) else output)]

        layers = [self.backbone.get_submodule(name) for name in self.before_last]
        handles = [layer.register_forward_hook(keep) for layer in layers]
        try:
            features = self.backbone(images)
        finally:
            for handle in handles:
                handle.remove()
        if not seen or not isinstance(seen[0][1], Tensor):
            raise ValueError(
                f"probe features last-two: {self.before_last[0]}, the layer before the last of "
                f"{type(self.backbone).__name__}, gave no tensor; use features: last, or another backbone"
            )
        layer, earlier = seen[0]
        if earlier.ndim > 2:
            earlier = pooled(self._channels_last(layer, earlier), layer, (), earlier)
        return torch.cat([earlier.to(features.dtype), features], dim=1)

    def _channels_last(self, layer: nn.Module, output: Tensor) -> bool:
        """Whether channels are the last axis of a layer's output, not the second."""
        # What a block ends with, its last norm or projection, is as wide as the block.
        *_, last = layer.parameters()
        second, final = (
            output.shape[axis : axis + 1] == last.shape[:1] for axis in (1, output.ndim - 1)
        )
        if second != final:
            return final
        return output.ndim == 3 or getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"


def _modules_before_last(backbone: nn.Module) -> list[str]:
    """Names of all modules whose parameters belong to the layer before the last, and to no other."""
    layers = layers_by_name(backbone)
    number = layers[HEADS] - 2
    names = []
    for name, module in backbone.named_modules():
        held = {layers[f"{name}.{key}"] for key, _ in module.named_parameters()} if name else set()
        if held == {number}:
            names.append(name)
    if number < 1 or not names:
        raise ValueError(f"{type(backbone).__name__} has no layer of its own before the last")
    return names
