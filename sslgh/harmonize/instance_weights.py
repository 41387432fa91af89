"""Instance weights from a prior: rare surrogate labels weigh more, the mean stays 1."""

import torch
from torch import Tensor


def instance_weights(
    labels: Tensor, prior: Tensor, seen: Tensor, *, power: float, max_weight: float
) -> Tensor:
    """Weight of each sample in the self-supervised loss.

    ``w_i = min(c * prior[label_i] ** -power, max_weight)`` with the one ``c`` for which the mean over
    the seen samples is 1. Unseen samples keep weight 1, so the mean over all is 1 too.

    Args:
        labels: Surrogate labels, shape (N,), integers in 0..K-1; -1 where not seen.
        prior: Shares of the surrogate labels, shape (K,); positive where a label points to.
        seen: Shape (N,), bool.
        power: 0 (all weights exactly 1) or more; 1 gives every surrogate class the same sum.
        max_weight: Largest weight, above 1.

    Returns:
        Shape (N,), float32, on the device of ``labels``.

    Raises:
        ValueError: If a shape, a label, a share or a parameter makes no sense.

    Examples:
        Four samples of share 0.8 and one of share 0.2; inverse shares 1.25 and 5 have the mean 2:

        >>> labels, seen = torch.tensor([0, 0, 0, 0, 1]), torch.ones(5, dtype=torch.bool)
        >>> instance_weights(labels, torch.tensor([0.8, 0.2]), seen, power=1.0, max_weight=10.0)
        tensor([0.6250, 0.6250, 0.6250, 0.6250, 2.5000])
    """
    _check(labels, prior, seen, power, max_weight)
    weights = torch.ones(len(labels), device=labels.device)
    if power == 0 or not bool(seen.any()):
        return weights
    shares = prior.to(device=labels.device, dtype=torch.float64)[labels[seen]]
    if not bool((shares > 0).all()):
        raise ValueError(
            "prior must be positive for every label of a seen sample, got a share of 0 or NaN"
        )
    # Relative to the largest, so that a share of 1e-300 cannot overflow.
    raw = torch.exp(-power * (shares.log() - shares.log().min()))
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


def _check(labels: Tensor, prior: Tensor, seen: Tensor, power: float, max_weight: float) -> None:
    if labels.ndim != 1 or seen.shape != labels.shape or prior.ndim != 1:
        raise ValueError(
            f"labels and seen must share a shape (N,) and prior be (K,), got {tuple(labels.shape)}, "
            f"{tuple(seen.shape)} and {tuple(prior.shape)}"
        )
    if not power >= 0:
        raise ValueError(f"power must be 0 or more, got {power}")
    if not max_weight > 1:
        raise ValueError(f"max_weight must exceed the mean weight 1, got {max_weight}")
    known = labels[seen]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < len(prior):
        raise ValueError(
            f"labels of seen samples must lie in 0..{len(prior) - 1}, got {int(known.min())}..{int(known.max())}"
        )
