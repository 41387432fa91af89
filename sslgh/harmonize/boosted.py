"""Which samples are hard: moving averages of their losses, as strengths of augmentation."""

import torch
from torch import Tensor, nn

from sslgh.distributed import broadcast, dist_info
from sslgh.functional.checks import with_float64
from sslgh.harmonize.ema_bank import EmaBank


class MomentumLoss(nn.Module):
    """Momentum losses of Boosted Contrastive Learning (BCL, ICML 2022, arXiv:2205.12693).

    A sample's first loss is taken as it is, later ones move it by 1 - momentum. When an epoch
    begins, the losses stored so far become strengths in [0, 1], which rule how likely and how
    strongly a sample is augmented: rare kinds keep large losses, and get harder views.

    Plugs into any method with a per-sample loss. All state is buffers; keep it outside a DDP
    wrapper, and make it after torch.distributed is initialized (the bank lives on rank 0)::

        momentum_loss.begin_epoch(epoch)
        strength = momentum_loss.strength(index)
        ...
        momentum_loss.observe(output.per_sample, index)

    Args:
        num_samples: N, size of the training set.
        momentum: Share of the old loss that is kept; 0.97 is the paper's code's.

    Raises:
        ValueError: If ``momentum`` is not in [0, 1).
    """

    strengths: Tensor
    epoch: Tensor

    def __init__(self, num_samples: int, momentum: float = 0.97) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum
        self.memory = EmaBank(num_samples, 1)
        self.register_buffer("strengths", torch.zeros(num_samples))
        self.register_buffer("epoch", torch.tensor(-1))

    def begin_epoch(self, epoch: int) -> None:
        """Turn the stored losses into strengths. Collective: call it on every rank.

        Idempotent: the last begun epoch is remembered, so that a resume in its middle keeps the
        strengths it began with.

        Args:
            epoch: Epoch that begins, counted from 0.
        """
        if epoch <= int(self.epoch):
            return
        if dist_info().rank == 0:
            self.strengths.copy_(loss_strengths(self.memory.rows[:, 0], self.memory.seen))
        broadcast(self.strengths)
        self.epoch.fill_(epoch)

    def strength(self, index: Tensor) -> Tensor:
        """Strengths of the samples at ``index`` (n,): (n,), in [0, 1]; 0 in the first epoch."""
        return self.strengths[index]

    def observe(self, per_sample: Tensor, index: Tensor) -> None:
        """Store losses (n,) of the samples at ``index`` (n,), once per step. Collective: call it on every rank.

        No gradient is kept. Samples that occur twice count once; losses that are not finite are
        left out.

        Raises:
            ValueError: If the shapes differ.
        """
        if per_sample.ndim != 1 or per_sample.shape != index.shape:
            raise ValueError(
                f"losses and index must share a shape (n,), got {tuple(per_sample.shape)} and "
                f"{tuple(index.shape)}"
            )
        self.memory.update(per_sample[:, None], index, momentum=self.momentum)


@torch.no_grad()
@with_float64
def loss_strengths(losses: Tensor, seen: Tensor) -> Tensor:
    """Losses scaled to [0, 1], symmetrically around their mean, which becomes 0.5.

    BCL divides by the standard deviation before it divides by the largest deviation, which
    undoes that; here only the latter.

    Args:
        losses: Shape (N,).
        seen: Mask of the losses that count, shape (N,), bool.

    Returns:
        Shape (N,), dtype of ``losses``; 0 where not seen, 0.5 where all seen losses are equal.

    Examples:
        The mean of those seen is 3, the furthest from it is 6:

        >>> loss_strengths(torch.tensor([1.0, 2.0, 9.0, 6.0]), torch.tensor([True, True, False, True]))
        tensor([0.1667, 0.3333, 0.0000, 1.0000])
    """
    # In double precision the mean of equal losses is that loss: else rounding would be blown up.
    deviation = torch.where(seen, losses.double() - losses[seen].double().mean(), 0)
    furthest = deviation.abs().max().clamp(min=torch.finfo(deviation.dtype).tiny)
    return torch.where(seen, deviation / (2 * furthest) + 0.5, 0).to(losses.dtype)
