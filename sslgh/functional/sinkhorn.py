"""Optimal transport of samples to surrogate classes with a given prior.

Shapes: N samples, K surrogate classes.
"""

import torch
from torch import Tensor

from sslgh.functional.checks import check_positive, check_prior, in_float32

# Iterations between two absorptions of the scalings into the kernel, and between two looks
# at the tolerance.
BLOCK = 20
# Bound of a scaling inside one block. Products of a bounded scaling and the kernel (whose
# rows sum to 1) stay inside float32. Scores of unit length are solved as in float64 down to an epsilon
# of 1e-3; below it the kernel holds zeros, and columns stay short of their sums.
LIMIT = 1e30


@torch.no_grad()
@in_float32
def sinkhorn(
    scores: Tensor,
    prior: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 300,
    tolerance: float | None = None,
) -> Tensor:
    """Surrogate labels whose class sizes follow the prior (GH, eq. 3 and alg. 1, arXiv:2310.17622).

    Maximizes <Q, scores> + epsilon * entropy(Q) subject to row sums 1 and column sums
    N * prior. Matrix scaling on a kernel into which the scalings are absorbed, in the log
    domain, every 20 iterations: as stable as log-domain Sinkhorn at the price of two
    matrix-vector products an iteration. No gradient flows: the result is a target.

    Args:
        scores: Shape (N, K), finite. A leading batch dimension (B, N, K) solves B problems.
        prior: Shares of the classes, shape (K,), non-negative, of any positive sum. A class of
            share 0 receives nothing.
        epsilon: Entropic regularization; the paper's lambda is 1 / epsilon = 20.
        iterations: Pairs of column and row updates, at least 1.
        tolerance: Stop once the L1 error of the column sums divided by N is below this, looked
            at every 20 iterations (which synchronizes the device). None runs all iterations.

    Returns:
        Shape of ``scores``. Rows sum to 1 (the last update); columns to N * prior up to the
        convergence reached.

    Raises:
        ValueError: If shapes do not fit or a parameter is not positive.

    Examples:
        >>> plan = sinkhorn(torch.tensor([[1.0, 0.0], [0.9, 0.0]]), torch.tensor([0.5, 0.5]))
        >>> plan.sum(0).round(decimals=3)
        tensor([1., 1.])
        >>> sinkhorn(torch.zeros(3, 2), torch.tensor([0.25, 0.75]))[0]
        tensor([0.2500, 0.7500])
    """
    if scores.ndim not in (2, 3):
        raise ValueError(f"scores must be (N, K) or (B, N, K), got {tuple(scores.shape)}")
    check_prior(prior, scores.shape[-1])
    check_positive(epsilon=epsilon, iterations=iterations)
    log_kernel = scores.reshape(-1, *scores.shape[-2:]) / epsilon  # (B, N, K)
    num_samples = log_kernel.shape[1]
    prior = prior.to(log_kernel.dtype)
    sums = (num_samples * prior / prior.sum()).expand(len(log_kernel), 1, -1)

    # The first update in the log domain: no column of the kernel may vanish unless its share does.
    log_kernel = log_kernel - log_kernel.logsumexp(1, keepdim=True) + sums.log()
    kernel = log_kernel.softmax(2)
    done = 1
    while done < iterations:
        block = min(BLOCK, iterations - done)
        log_rows, log_columns = _scale(kernel, sums, block)
        log_kernel = log_kernel + log_rows + log_columns
        kernel = log_kernel.softmax(2)
        done += block
        if tolerance is not None and _marginal_error(kernel, sums) < tolerance:
            break
    return kernel.reshape(scores.shape)


def _scale(kernel: Tensor, sums: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Alternate column and row scalings; their logarithms, (B, N, 1) and (B, 1, K)."""
    rows = kernel.new_ones(kernel.shape[0], 1, kernel.shape[1])
    columns = torch.ones_like(sums)
    transposed = kernel.transpose(1, 2).contiguous()
    for _ in range(iterations):
        columns = torch.div(sums, torch.bmm(rows, kernel).clamp_(min=1 / LIMIT)).clamp_(max=LIMIT)
        rows = torch.bmm(columns, transposed).clamp_(min=1 / LIMIT).reciprocal_()
    return rows.transpose(1, 2).log(), columns.log()


def _marginal_error(kernel: Tensor, sums: Tensor) -> float:
    """Largest L1 error of the column sums over the batch, as a share of the samples."""
    error = (kernel.sum(1, keepdim=True) - sums).abs().sum(2) / kernel.shape[1]
    return float(error.max())
