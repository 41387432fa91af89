"""Class shares: the check that they are shares.

Shapes: C classes.
"""

from torch import Tensor

# Shares that were rounded to three digits still pass.
TOLERANCE = 1e-3


def check_shares(prior: Tensor) -> None:
    """Raise ``ValueError`` unless ``prior`` is (C,), not negative, and sums to 1; waits for the device.

    Examples:
        >>> import torch
        >>> check_shares(torch.tensor([2.0, 1.0]))
        Traceback (most recent call last):
        ValueError: class shares must not be negative and sum to 1, got a sum of 3 and a smallest of 1
    """
    if prior.ndim != 1 or len(prior) == 0:
        raise ValueError(f"class shares must have shape (C,), got {tuple(prior.shape)}")
    total, smallest = prior.double().sum().item(), prior.min().item()
    if not (abs(total - 1) < TOLERANCE and smallest >= 0):
        raise ValueError(
            "class shares must not be negative and sum to 1, "
            f"got a sum of {total:.4g} and a smallest of {smallest:.4g}"
        )
