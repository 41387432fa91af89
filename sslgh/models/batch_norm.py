"""Batch normalization over the global batch, on CPU as well as GPU.

torch's SyncBatchNorm refuses CPU tensors, so that a run on several CPU processes would
normalize each shard by itself and no longer equal the run on one.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from sslgh.distributed import dist_info, gather

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization whose training statistics are those of the samples of all ranks.

    Each rank contributes count, mean and sum of squared deviations, combined by Chan's
    formula: unlike a difference of raw moments it loses nothing to cancellation. Gradients
    flow through the statistics of every rank. With one rank, or in eval mode, it is
    plain batch normalization.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        # timm's norms hold what follows them.
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected input (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, ...) over all axes but C."""
        alone = not self.training or dist_info().size == 1
        normalized = super().forward(input) if alone else self._normalize(input)
        result: Tensor = self.act(self.drop(normalized))
        return result

    def _normalize(self, input: Tensor) -> Tensor:
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        with torch.autocast(device_type=input.device.type, enabled=False):
            mean, square, count = _global_statistics(wide)
        self._remember(mean.detach(), square.detach() / (count - 1))
        # Folded to one scale and one shift per channel: a single pass over the activations.
        scale = (square / count + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked: Tensor
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _global_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), sum of squared deviations (C,) and count () over all ranks, with gradient."""
    axes = [axis for axis in range(input.ndim) if axis != 1]
    count = input.new_tensor(input.numel() / input.shape[1])
    mean = input.mean(axes) if len(input) else input.sum(axes)
    square = (input - mean.view(1, -1, *(1 for _ in axes[1:]))).square().sum(axes)
    gathered, _ = gather(torch.stack([count.expand_as(mean), mean, square])[None])
    counts, means, squares = gathered.unbind(1)  # each (P, C)
    total = counts.detach().sum(0)
    weights = counts.detach() / total
    global_mean = (weights * means).sum(0)
    between = (counts.detach() * (means - global_mean).square()).sum(0)
    return global_mean, squares.sum(0) + between, total[0]


def use_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm of ``module`` by one with global statistics.

    Args:
        module: Changed in place; parameters and buffers are kept, also their names.

    Returns:
        The module: ``nn.SyncBatchNorm`` inside on CUDA, ``GlobalBatchNorm`` elsewhere.

    Raises:
        ValueError: If a batch norm is of a kind that does more than timm's and torch's do.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if torch.cuda.is_available():
        if all(type(norm) in PLAIN for norm in norms):
            synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
            return synced
        layers: Any = importlib.import_module("timm.layers")
        with_activations: nn.Module = layers.convert_sync_batchnorm(module)
        return with_activations
    for name, child in list(module.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _globalized(child))
        else:
            use_global_batch_norm(child)
    return module


def _globalized(norm: nn.modules.batchnorm._BatchNorm) -> GlobalBatchNorm:
    followed = hasattr(norm, "drop") and hasattr(norm, "act")
    if not (followed or type(norm) in PLAIN):
        raise ValueError(
            f"{type(norm).__name__} has no global form here; set model.batch_norm: local"
        )
    fresh = GlobalBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    # The tensors themselves, with their type and device.
    fresh._parameters, fresh._buffers = norm._parameters, norm._buffers
    if followed:
        fresh.drop, fresh.act = norm.drop, norm.act  # type: ignore[assignment]
    return fresh.train(norm.training)
