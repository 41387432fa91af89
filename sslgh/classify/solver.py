"""The optimum of a linear head for the convex objectives, by a quasi-Newton method.

Shapes: H heads, N samples, F features, C classes.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sslgh.classify.ensemble import check_labeled
from sslgh.functional.margin_rules import Margins

Vector = NDArray[np.float64]
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]  # of parameters: a value, and its gradient

# Logits held at once: 128 MiB.
MAX_ENTRIES = 2**24


class Limits(NamedTuple):
    """Where L-BFGS ends: after so many iterations, or at a largest entry of the gradient."""

    max_iterations: int
    tolerance: float


class HeadLoss(NamedTuple):
    """The penalized loss of one head, in float64, over classes that all have samples.

    Attributes:
        design: Features and a last column of ones, shape (N, F + 1).
        labels: Shape (N,).
        column: Delta_yy' without row_y, shape (C,).
        own: What the true class loses, row_y + column_y, shape (C,); 0 where the margins are
            those of logit adjustment.
        weight: alpha_y / N of every sample, shape (N,).
        decay: L2 of every column of ``design``, shape (F + 1,); 0 for the bias.
        focus: Exponent of the focal loss; 0 is the convex cross-entropy.
        present: Which of all classes these are, a mask.
    """

    design: Tensor
    labels: Tensor
    column: Tensor
    own: Tensor
    weight: Tensor
    decay: Tensor
    focus: float
    present: Tensor

    def at(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of parameters (C, F + 1), and its gradient."""
        gradient = self.decay * parameters
        value = (gradient * parameters).sum() / 2
        size = max(1, MAX_ENTRIES // len(self.column))
        parts = (torch.split(part, size) for part in (self.design, self.labels, self.weight))
        for design, labels, weight in zip(*parts, strict=True):
            loss, slope = self._of_logits(design @ parameters.T + self.column, labels[:, None])
            value = value + weight @ loss
            gradient.addmm_(slope.mul_(weight[:, None]).T, design)
        return value, gradient

    def _of_logits(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (N,) of some rows, and its gradient by their logits (N, C), which are overwritten."""
        logits.scatter_add_(1, labels, -self.own[labels])
        total = logits.logsumexp(1, keepdim=True)
        loss = (total - logits.gather(1, labels))[:, 0]
        residual = logits.sub_(total).exp_()
        residual.scatter_add_(1, labels, residual.new_full(labels.shape, -1.0))
        if self.focus:
            loss, slope = _focused(loss, self.focus)
            residual.mul_(slope[:, None])
        return loss, residual

    def start(self) -> Tensor:
        """Weights 0, and the best biases to them unless margins depend on the own class too."""
        classes = len(self.column)
        shares = torch.bincount(self.labels, weights=self.weight, minlength=classes)
        parameters = self.design.new_zeros(classes, self.design.shape[1])
        parameters[:, -1] = shares.log() - self.column
        return parameters


def solve_heads(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    margins: Sequence[Margins],
    weight_decay: Sequence[float],
    max_iterations: int = 2000,
    tolerance: float = 1e-7,
) -> tuple[Tensor, Tensor]:
    """Minimize (1/N) sum of alpha_y log(1 + sum exp(Delta_yy' + f_y' - f_y)) + decay/2 |W|^2.

    The losses of the pairwise-margin family (LA, eq. 11, arXiv:2007.07314) are convex in the
    weights W and biases b of f = W x + b. L-BFGS in float64, one head after the other, on the
    device of ``features``. Biases are not decayed; weights and biases, which the loss knows
    up to one addend for all classes, sum to 0 over the classes.

    Args:
        features: Shape (N, F), finite. Bring them to one scale first: the penalty does not, and
            the method converges slowly where scales differ by orders.
        labels: Shape (N,), integers in [0, C).
        num_classes: C. A class without a sample, or of weight 0, leaves the sum of every loss.
        margins: Delta and alpha of each head, H of them.
        weight_decay: L2 of each head on the scale of `HeadTraining`, H of them. With 0 there
            is no optimum where classes can be separated.
        max_iterations: Maximum for each head; reaching it raises a ``ConvergenceWarning``.
        tolerance: The largest entry of the gradient to stop at. Below about 1e-8 times the size of
            the features rounding ends the search first, without a warning.

    Returns:
        Weights (H, C, F) and biases (H, C), float64. A class that left the sum has weight 0
        and bias -inf, and so is never predicted.

    Raises:
        ValueError: If shapes do not fit, features are not finite, labels lie outside, a decay is
            negative, fewer than two classes are left, or margins are not finite.

    Examples:
        Uninformative features give the shares with cross-entropy and equal shares with adjustment:

        >>> from sslgh.functional.margin_rules import adjusted_margins, plain_margins
        >>> prior = torch.tensor([0.75, 0.25])
        >>> weight, bias = solve_heads(
        ...     torch.zeros(4, 1),
        ...     torch.tensor([0, 0, 0, 1]),
        ...     num_classes=2,
        ...     margins=[plain_margins(prior), adjusted_margins(prior)],
        ...     weight_decay=[0.1, 0.1],
        ... )
        >>> bias.softmax(1)
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    _check(features, labels, num_classes, margins, weight_decay)
    design, limits = with_ones(features.double()), Limits(max_iterations, tolerance)
    solved = [
        optimum(head_loss(design, labels.long(), margin, decay=decay), limits)
        for margin, decay in zip(margins, weight_decay, strict=True)
    ]
    stacked = torch.stack(solved)
    return stacked[..., :-1], stacked[..., -1]


def with_ones(features: Tensor) -> Tensor:
    """Features (N, F) with a last column of ones, to which the biases belong."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def head_loss(
    design: Tensor, labels: Tensor, margins: Margins, *, decay: float, focus: float = 0.0
) -> HeadLoss:
    """The loss of the classes that have samples and a weight.

    Args:
        design: As `with_ones` gives it, in float64.
        labels: Shape (N,).
        margins: Delta and alpha.
        decay: L2 of the weights.
        focus: Exponent of the focal loss.

    Raises:
        ValueError: If fewer than two classes are left, or margins are not finite.
    """
    size = len(labels)
    counts = torch.bincount(labels, minlength=len(margins.weight))
    present = (counts > 0) & (margins.weight.to(counts.device) > 0)
    row, column, weight = (part.to(design)[present] for part in margins)
    if present.sum() < 2:
        raise ValueError("a classifier needs samples of at least 2 classes with a positive weight")
    if not torch.stack([row, column, weight]).isfinite().all():
        raise ValueError(
            "margins and weights of classes with samples must be finite; were they made from other shares?"
        )
    if not present.all():
        kept = present[labels]
        design, labels = design[kept], (present.cumsum(0) - 1)[labels[kept]]
    penalty = design.new_full((design.shape[1],), decay)
    penalty[-1] = 0
    own, alpha = row + column, weight[labels] / size
    return HeadLoss(design, labels, column, own, alpha, penalty, focus, present)


def optimum(loss: HeadLoss, limits: Limits) -> Tensor:
    """Weights and biases (C, F + 1), which sum to 0 over the classes present; others have bias -inf."""
    found = minimum(loss.at, loss.start(), limits, rounding=_rounding(loss.design))
    return _of_all_classes(found - found.mean(0), loss.present)


def rescaled_optimum(loss: HeadLoss, limits: Limits, base: Tensor) -> Tensor:
    """The best multiples, one factor per class, of parameters (C, F + 1)."""
    base = base[loss.present]

    def of_scale(scale: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = loss.at(scale * base)
        return value, (gradient * base).sum(1, keepdim=True)

    start = torch.ones_like(base[:, :1])
    scale = minimum(of_scale, start, limits, rounding=_rounding(loss.design))
    return _of_all_classes(scale * base, loss.present)


def _of_all_classes(found: Tensor, present: Tensor) -> Tensor:
    solved = found.new_zeros(len(present), found.shape[1])
    solved[~present, -1] = -torch.inf
    solved[present] = found
    return solved


def minimum(loss: Loss, start: Tensor, limits: Limits, *, rounding: float) -> Tensor:
    """Parameters at which the loss has no slope, by L-BFGS from ``start``.

    Where the search ends before that, a ``ConvergenceWarning`` is raised, unless the slope is below ``rounding``.
    """

    def of_vector(vector: Vector) -> tuple[float, Vector]:
        value, gradient = loss(torch.from_numpy(vector).to(start).view_as(start))
        return value.item(), gradient.flatten().cpu().numpy()

    # ftol 0: a rare class is too small a part of the mean loss for the relative change to show it.
    found = minimize(
        of_vector,
        start.flatten().cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": limits.max_iterations,
            "maxfun": 2 * limits.max_iterations,
            "ftol": 0,
            "gtol": limits.tolerance,
        },
    )
    steepest = float(np.abs(found.jac).max())
    if not steepest <= max(limits.tolerance, rounding):  # written so that nan warns as well
        warnings.warn(
            f"a head stopped after {found.nit} iterations with a gradient of {steepest:.1e}, above the "
            f"tolerance of {limits.tolerance:.1e}; standardize features, or raise weight_decay, max_iterations "
            "or the tolerance",
            ConvergenceWarning,
            stacklevel=4,
        )
    return torch.from_numpy(found.x).to(start).view_as(start)


def _focused(loss: Tensor, focus: float) -> tuple[Tensor, Tensor]:
    """Focal loss (1 - p)^focus times the cross-entropy -log p, and its derivative by the latter."""
    probability = torch.exp(-loss)
    missed = -torch.expm1(-loss)  # 1 - p
    power = missed**focus
    # At loss 0 the second term is 0, whatever missed^(focus - 1) is.
    second = focus * missed.clamp(min=1e-300) ** (focus - 1) * probability * loss
    return power * loss, power + second


def _rounding(design: Tensor) -> float:
    """The gradient below which two losses along a step are one float64, up to a factor.

    The line search compares losses: steps of size d change them by curvature d^2, the curvature
    grows with the square of the features, and the gradient is curvature times d.
    """
    size = design.square().mean(0).max().sqrt().item()
    return float(10 * np.finfo(np.float64).eps ** 0.5 * size)


def _check(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    margins: Sequence[Margins],
    weight_decay: Sequence[float],
) -> None:
    check_labeled(features, labels, num_classes)
    if len(margins) != len(weight_decay):
        raise ValueError(
            f"every head needs margins and a weight decay, got {len(margins)} and {len(weight_decay)}"
        )
    for margin in margins:
        if any(part.shape != (num_classes,) for part in margin):
            raise ValueError(
                f"margins must have shape ({num_classes},) each, "
                f"got {', '.join(str(tuple(part.shape)) for part in margin)}"
            )
    if any(not decay >= 0 for decay in weight_decay):
        raise ValueError(f"weight_decay must not be negative, got {list(weight_decay)}")
