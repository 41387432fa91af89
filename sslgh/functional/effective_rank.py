"""How many directions the embeddings really use.

Shapes: N samples, D embedding width.
"""

import torch
from torch import Tensor

from sslgh.functional.checks import in_float32


@torch.no_grad()
@in_float32
def effective_rank(z: Tensor) -> Tensor:
    """Exponential of the entropy of the normalized singular values (RankMe, arXiv:2210.02885).

    The rows are taken as they are, neither centered nor normalized, as in the paper: embeddings that
    share one direction have rank 1, whatever small differences are left. The 1e-7 that the paper adds
    to every share is left out; here 0 log 0 is 0.

    The eigenvalues of the smaller Gram matrix are found in float64, since squaring in float32 would
    leave noise of 3e-4 of the largest singular value in every empty direction: on CUDA this waits for
    the device.

    Args:
        z: Shape (N, D).

    Returns:
        Shape (), float32, from 1 to min(N, D); 1 for zeros, nan where a row is not finite.

    Raises:
        ValueError: If ``z`` is not (N, D) with at least one number.

    Examples:
        Two of three axes are used, equally; then one row four times as long as the other, whose shares
        4/5 and 1/5 have the entropy log 5 - 4/5 log 4:

        >>> effective_rank(torch.eye(3)[[0, 0, 1, 1]])
        tensor(2.)
        >>> effective_rank(torch.tensor([[4.0, 0.0], [0.0, 1.0]])), 5 / 4**0.8
        (tensor(1.6494), 1.6493848884661177)
    """
    if z.ndim != 2 or z.numel() == 0:
        raise ValueError(f"expected embeddings (N, D) with N, D > 0, got {tuple(z.shape)}")
    finite = z.isfinite().all()
    z = torch.where(finite, z, 0).double()  # the solver would raise for nan
    gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.xlogy(share, share).sum().neg().exp().float()
    return rank.where(finite, torch.nan)
