"""A linear probe that is trained beside the backbone, on features without gradient.

Shapes: N samples here, F features, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.distributed import gather
from sslgh.functional.checks import in_float32

# Adam with its usual averages. On the features of SimCLR on long-tailed digits, rates of 0.03 to 0.3 came
# within a point or two of each other after 100 and after 400 steps, and 0.003 was far behind. Epsilon is not
# 1e-8: a class that the first batch lacks has a gradient of rounding errors alone, which is no direction.
RATE, FIRST, SECOND, EPSILON = 0.1, 0.9, 0.999, 1e-6
# Steps that the moments of the features look back on, images of a class that its accuracy does, epochs that
# the shares of the classes do.
FEATURE_WINDOW, CLASS_WINDOW, SHARE_WINDOW = 100, 50, 10


class OnlineProbe(nn.Module):
    """Softmax regression on standardized features, judged on every batch before it learns from it.

    It trains on logit-adjusted cross-entropy (LA, eq. 10, arXiv:2007.07314), so that its scores suit
    classes of equal shares: with plain cross-entropy the few-shot classes of digits stayed at 52 %
    where this reaches 77 %, at the price of 8 points on many-shot classes. From the second epoch on
    it meets new views of images it has learned from: a measure of how the features come along, not of
    how they generalize. The shares begin with those of the training set and follow what is seen, which
    a resampled stream makes another thing.

    Its whole state is buffers, alike on all processes, so that a resumed run goes on exactly. Nothing
    flows back into the backbone, and nothing here draws random numbers.

    Args:
        num_features: F.
        class_counts: Training images of each class, shape (C,); a class without any is never predicted, and
            in no group.

    Raises:
        ValueError: If ``class_counts`` is not (C,) or counts nothing.
    """

    weight: Tensor
    first: Tensor
    second: Tensor
    mean: Tensor
    variance: Tensor
    hits: Tensor
    trials: Tensor
    shares: Tensor
    steps: Tensor

    def __init__(self, num_features: int, class_counts: Tensor) -> None:
        super().__init__()
        if class_counts.ndim != 1 or not class_counts.sum() > 0:
            raise ValueError(
                f"class_counts must be (C,) and not all 0, got {tuple(class_counts.shape)}"
            )
        num_classes = len(class_counts)
        self.window = SHARE_WINDOW * int(class_counts.sum())
        self.held = (class_counts > 0).cpu()
        # The last column is the bias.
        for name in ("weight", "first", "second"):
            self.register_buffer(name, torch.zeros(num_classes, num_features + 1))
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(num_features))
        # A class begins with one imagined image at chance: no number is missing, and it is soon outweighed.
        self.register_buffer("hits", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("trials", torch.ones(num_classes))
        self.register_buffer("shares", (class_counts / class_counts.sum()).float())
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    @in_float32
    def observe(self, features: Tensor, labels: Tensor) -> Tensor:
        """Judge the features of all processes, then learn from them. Collective: call it on every rank.

        Args:
            features: Own features of the first view, shape (N, F).
            labels: Their classes, shape (N,), integers in [0, C).

        Returns:
            Shape (): share of the batch that was right before the step, the same on every process.
        """
        features, _ = gather(features.detach().float())
        labels, _ = gather(labels.to(features.device))
        self.steps += 1
        self._follow(features)
        inputs = self._standardize(features)
        scores = inputs @ self.weight.T
        known = scores.masked_fill(self.shares == 0, -torch.inf)
        right = (known.argmax(1) == labels).float()
        self._count(right, labels)
        error = (scores + self.shares.log()).softmax(1) - F.one_hot(labels, len(self.weight))
        self._step(error.T @ inputs / len(inputs))
        return right.mean()

    @property
    def class_accuracy(self) -> Tensor:
        """Accuracy on about the last 50 images of every class, shape (C,); chance before its first."""
        return self.hits / self.trials

    def group_accuracy(self, groups: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of `class_accuracy` over the classes of each group that have images, each counting the same.

        Args:
            groups: Masks of shape (C,), as `shot_groups` gives them, on any device.

        Returns:
            Shape () each; a group without classes is left out.
        """
        accuracy = self.class_accuracy
        # A class without images would keep the imagined accuracy it began with.
        held = {name: mask.cpu() & self.held for name, mask in groups.items()}
        return {
            name: accuracy[mask.nonzero().flatten().to(accuracy.device)].mean()
            for name, mask in held.items()
            if mask.any()
        }

    def _follow(self, features: Tensor) -> None:
        """Moments over all features so far, later over about the last 100 batches: the backbone moves."""
        share = 1 / self.steps.clamp(max=FEATURE_WINDOW)
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        change = mean - self.mean
        self.mean += share * change
        self.variance += share * (variance - self.variance + (1 - share) * change.square())

    def _standardize(self, features: Tensor) -> Tensor:
        """Mean 0 and variance 1/F, so that a score is of order one whatever F is; then the bias' ones."""
        # The rounding of a feature that never changes is not blown up.
        floor = (1e-4 * self.mean.abs()).clamp(min=torch.finfo(torch.float32).tiny)
        deviation = self.variance.sqrt().clamp(min=floor)
        inputs = (features - self.mean) / deviation / features.shape[1] ** 0.5
        return F.pad(inputs, (0, 1), value=1.0)

    def _count(self, right: Tensor, labels: Tensor) -> None:
        """Every image takes 1/50 of the weight off those of its class before it."""
        new = torch.zeros_like(self.trials).index_add(0, labels, torch.ones_like(right))
        self.shares.lerp_(new / len(labels), 1 - (1 - 1 / self.window) ** len(labels))
        kept = (1 - 1 / CLASS_WINDOW) ** new
        self.hits.mul_(kept).index_add_(0, labels, right)
        self.trials.mul_(kept).add_(new)

    def _step(self, gradient: Tensor) -> None:
        """Adam (arXiv:1412.6980, algorithm 1), written out since torch keeps its state outside of buffers."""
        self.first.lerp_(gradient, 1 - FIRST)
        self.second.lerp_(gradient.square(), 1 - SECOND)
        first = self.first / (1 - FIRST**self.steps)
        second = self.second / (1 - SECOND**self.steps)
        self.weight -= RATE * first / (second.sqrt() + EPSILON)
