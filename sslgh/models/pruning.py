"""A pruned branch of a network: the same weights without the small ones, norms of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Norm = nn.modules.batchnorm._BatchNorm
Convolution = nn.modules.conv._ConvNd


def magnitude_masks(weights: Sequence[Tensor], *, share: float) -> list[Tensor]:
    """Mask the weights of smallest magnitude, over all tensors together.

    Exactly round(share * total) weights are pruned: all below a threshold, and of those that
    equal it the first in order, so that processes and devices agree on ties.

    Args:
        weights: Any shapes.
        share: Share of the weights that are pruned, in [0, 1].

    Returns:
        One bool tensor per weight tensor, of its shape; False where pruned.

    Examples:
        >>> magnitude_masks([torch.tensor([3.0, -1.0]), torch.tensor([[0.5], [-2.0]])], share=0.5)
        [tensor([ True, False]), tensor([[False],
                [ True]])]
    """
    size = torch.cat([weight.detach().abs().flatten() for weight in weights])
    count = round(share * len(size))
    kept = torch.ones_like(size, dtype=torch.bool)
    if count:
        threshold = size.kthvalue(count).values
        below, ties = size < threshold, size == threshold
        kept = ~(below | (ties & (ties.cumsum(0) <= count - below.sum())))
    parts = torch.split(kept, [weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


class PrunedBranch(nn.Module):
    """Masks and batch norms of a network's pruned branch; all else is shared with the network.

    It holds only tensors, under the network's names with "/" for "."; the computation is the
    network's own with these in place of its own. So the network stays an ordinary module whose
    norms may be replaced later (``use_global_batch_norm``), no tensor is saved twice, and gradients reach
    the shared weights. Layer norms keep no statistics and are shared.

    Gradient checkpointing would recompute the branch with the network's own tensors, and FSDP
    hands out shards: neither fits.

    Args:
        network: Network whose convolutions are masked, at first with nothing pruned, and whose batch
            norms are copied as they are now.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.norms, self.masks = nn.Module(), nn.Module()
        for path, module in network.named_modules():
            if isinstance(module, Norm):
                for name, parameter in module.named_parameters(path, recurse=False):
                    own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    self.norms.register_parameter(_flat(name), own)
                for name, buffer in module.named_buffers(path, recurse=False):
                    self.norms.register_buffer(_flat(name), buffer.clone())
            elif isinstance(module, Convolution):
                mask = torch.ones_like(module.weight, dtype=torch.bool)
                self.masks.register_buffer(_flat(f"{path}.weight"), mask)

    @torch.no_grad()
    def redraw(self, network: nn.Module, *, share: float) -> None:
        """Prune the smallest of the convolution weights that ``network`` has now.

        Raises:
            ValueError: If the network recomputes its activations in the backward pass.
        """
        if any(getattr(module, "grad_checkpointing", False) for module in network.modules()):
            raise ValueError(
                "a pruned branch cannot be recomputed in the backward pass, which sees the dense "
                "weights; set model.checkpointing: false"
            )
        masks = dict(self.masks.named_buffers())
        if masks:
            weights = [network.get_parameter(_dotted(name)) for name in masks]
            drawn = magnitude_masks(weights, share=share)
            for mask, fresh in zip(masks.values(), drawn, strict=True):
                mask.copy_(fresh)

    def forward(self, network: nn.Module, x: Tensor) -> Tensor:
        """``network(x)`` with masked convolutions and the branch's own norms.

        Args:
            network: The one that the branch was made of; unchanged, its statistics too.
            x: Input of the network.
        """
        own: dict[str, Any] = {_dotted(name): norm for name, norm in _tensors(self.norms)}
        for name, mask in self.masks.named_buffers():
            own[_dotted(name)] = network.get_parameter(_dotted(name)) * mask
        result: Tensor = functional_call(network, own, (x,))
        return result


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _flat(name: str) -> str:
    return name.replace(".", "/")  # torch allows no dots in the name of a tensor


def _dotted(name: str) -> str:
    return name.replace("/", ".")
