"""Instance weights from cluster sizes: samples of small clusters weigh more, the mean stays 1."""

import torch
from torch import Tensor

from sslgh.functional.checks import with_float64


@with_float64
def instance_weights(shares: Tensor, seen: Tensor, *, power: float, max_weight: float) -> Tensor:
    """Weight of each sample in the self-supervised loss.

    ``w_i = min(c * share_i ** -power, max_weight)`` with the one ``c`` for which the mean over
    the seen samples is 1. Unseen samples keep weight 1, so the mean over all is 1 too.

    Args:
        shares: Share of each sample's surrogate class, shape (N,); positive where seen.
        seen: Shape (N,), bool.
        power: 0 (all weights exactly 1) or more; 1 gives every surrogate class the same sum.
        max_weight: Largest weight, above 1.

    Returns:
        Shape (N,), float32, on the device of ``shares``.

    Raises:
        ValueError: If a shape, a share or a parameter makes no sense.

    Examples:
        Four samples of share 0.8 and one of share 0.2; inverse shares 1.25 and 5 have the mean 2:

        >>> shares, seen = torch.tensor([0.8, 0.8, 0.8, 0.8, 0.2]), torch.ones(5, dtype=torch.bool)
        >>> instance_weights(shares, seen, power=1.0, max_weight=10.0)
        tensor([0.6250, 0.6250, 0.6250, 0.6250, 2.5000])
    """
    _check(shares, seen, power, max_weight)
    weights = torch.ones(len(shares), device=shares.device)
    if power == 0 or not bool(seen.any()):
        return weights
    known = shares[seen].double()
    if not bool((known > 0).all()):
        raise ValueError("the share of a seen sample must be positive, got a share of 0 or NaN")
    # Relative to the largest, so that a share of 1e-300 cannot overflow.
    raw = torch.exp(-power * (known.log() - known.log().min()))
    weights[seen] = _clipped_to_mean_one(raw, max_weight).to(weights.dtype)
    return weights


def _clipped_to_mean_one(raw: Tensor, max_weight: float) -> Tensor:
    """``min(c * raw, max_weight)`` of mean 1: solved by trying each number of clipped samples.

    With the m largest clipped, ``c = (N - m * max_weight) / (sum of the others)``; the right m is the
    first for which the largest of the others stays below ``max_weight``. It exists because
    ``max_weight > 1``: before m reaches N the numerator falls under what the others need.
    """
    descending, order = raw.sort(descending=True)
    count = len(raw)
    others = descending.flip(0).cumsum(0).flip(0)
    clipped = torch.arange(count, dtype=raw.dtype, device=raw.device)
    scale = (count - clipped * max_weight) / others
    first = int(torch.nonzero(scale * descending <= max_weight)[0])
    result = torch.empty_like(raw)
    result[order] = torch.where(clipped < first, max_weight, scale[first] * descending)
    return result


def _check(shares: Tensor, seen: Tensor, power: float, max_weight: float) -> None:
    if shares.ndim != 1 or seen.shape != shares.shape:
        raise ValueError(
            f"shares and seen must share a shape (N,), got {tuple(shares.shape)} and {tuple(seen.shape)}"
        )
    if not power >= 0:
        raise ValueError(f"power must be 0 or more, got {power}")
    if not max_weight > 1:
        raise ValueError(f"max_weight must exceed the mean weight 1, got {max_weight}")
