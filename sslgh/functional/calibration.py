"""Whether a classifier's confidence is the share of its right answers.

Shapes: N predictions.
"""

import torch
from torch import Tensor

# Of Guo et al. (arXiv:1706.04599), section 5.
BINS = 15
# Votes of neighbors and other shares are fractions, which stand on the edges of bins: what is this little
# above an edge is on it, so that rounding does not choose the bin.
ROUNDING = 1e-6


def calibration_error(confidence: Tensor, right: Tensor, *, bins: int = BINS) -> Tensor:
    """Expected calibration error over bins of equal width (Guo et al., arXiv:1706.04599, eq. 3).

    The distance between mean confidence and share of right answers in a bin, averaged over the
    bins by their images. Bin m holds the confidences in ((m-1)/M, m/M], the first one 0 too; a millionth
    above an edge is on it.

    Args:
        confidence: Shape (N,), the probability of the predicted class, in [0, 1].
        right: Shape (N,), bool: the prediction is the label.
        bins: M.

    Returns:
        A float64 scalar in [0, 1].

    Raises:
        ValueError: If the shapes differ, there is no prediction, ``right`` is not bool or ``bins`` not positive.

    Examples:
        Twice sure to nine tenths and right once, once sure to six tenths and right:
        (|1 - 1.8| + |1 - 0.6|) / 3

        >>> calibration_error(torch.tensor([0.9, 0.9, 0.6]), torch.tensor([True, False, True]))
        tensor(0.4000, dtype=torch.float64)
    """
    if confidence.shape != right.shape or confidence.ndim != 1 or len(right) == 0:
        raise ValueError(
            f"confidence and right must share a shape (N,), N >= 1, got {tuple(confidence.shape)} and {tuple(right.shape)}"
        )
    if right.dtype != torch.bool:
        raise ValueError(f"right must be bool, got {right.dtype}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence = confidence.double()
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins + ROUNDING
    surplus = confidence.new_zeros(bins).index_add(
        0, torch.bucketize(confidence, edges), right.double() - confidence
    )
    return surplus.abs().sum() / len(confidence)
