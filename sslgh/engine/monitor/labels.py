"""What labels, which training never sees, say of the embeddings: an online probe, neighbors and distances of classes.

Shapes: N samples of a batch, M tracked samples, F features, D embedding width, C classes.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from sslgh.distributed import gather
from sslgh.functional import inter_class_uniformity, neighborhood_uniformity, purity
from sslgh.functional.checks import in_float32
from sslgh.functional.groups import class_accuracy, group_means, shot_groups
from sslgh.functional.neighbors import nearest_neighbor_votes
from sslgh.harmonize import GeometricHarmonizer
from sslgh.harmonize.ema_bank import EmaBank
from sslgh.methods import Method, MethodOutput

MAX_TRACKED = 10_000
# Votes as in Wu et al. (arXiv:1805.01978, section 3.4), with a tenth of their neighbors: the memory is
# smaller than a training set. The temperature lets the nearest decide, so that five images of a class
# can outvote fifteen of others.
NEIGHBORS, TEMPERATURE = 20, 0.1
# On the features of SimCLR on long-tailed digits, rates of 0.03 to 0.3 came within a point or two of each
# other after 100 and after 400 steps, and 0.003 was far behind. Epsilon is not 1e-8: a class that the first
# batch does not contain has a gradient of rounding errors alone.
RATE, FIRST, SECOND, EPSILON = 0.1, 0.9, 0.999, 1e-6
# Windows: steps for the moments of the features, images per class for its accuracy, epochs for class shares.
FEATURE_WINDOW, CLASS_WINDOW, SHARE_WINDOW = 100, 50, 10


class LabelMonitor(nn.Module):
    """Online probe of every batch, and metrics of the tracked embeddings at the end of an epoch.

    Args:
        labels: Class per training image, shape (number of images,).
        class_counts: Training images per class, shape (C,).
        method: Method whose features and embeddings are monitored.
    """

    labels: Tensor

    def __init__(
        self, labels: NDArray[np.int64], class_counts: NDArray[np.int64], method: Method
    ) -> None:
        super().__init__()
        counts, features = torch.from_numpy(class_counts), method.backbone.num_features
        assert isinstance(features, int)
        self.register_buffer("labels", torch.from_numpy(labels), persistent=False)
        self.groups = shot_groups(counts, test_counts=counts)  # a gap in the labels is no class
        self.tracked = TrackedEmbeddings(labels, len(counts), method.embedding_dim)
        self.probe = OnlineProbe(features, counts)

    def update(self, output: MethodOutput, index: Tensor, *, logged: bool) -> dict[str, Tensor]:
        """Store embeddings and train the probe; its accuracies if logged. Collective: call it on every rank."""
        self.tracked.update(output.embeddings[0], index)
        values = {"online": self.probe.update(output.features, self.labels[index])}
        accuracy = self.probe.class_accuracy
        for name, mask in self.groups.items():
            if logged and mask.any():
                values[f"online_{name}"] = accuracy[mask].mean()
        return values if logged else {}

    def report(self, harmonizer: GeometricHarmonizer | None) -> dict[str, float]:
        """`labeled_health` of the tracked embeddings; rank 0 only."""
        z, index = self.tracked.known()
        surrogate = None if harmonizer is None else harmonizer.labels[index]
        return labeled_health(z, self.labels[index], self.groups, surrogate=surrogate)


class TrackedEmbeddings(nn.Module):
    """The latest embedding of at most 10,000 training samples, stored on rank 0.

    Every class has the same number of places, ceil(10,000 / C), and its samples are spread evenly
    over the data set; of a smaller class all samples are tracked.

    Args:
        labels: Class of every training sample, shape (number of samples,).
        num_classes: Number of classes C.
        width: Embedding width D.
    """

    place: Tensor
    index: Tensor

    def __init__(self, labels: NDArray[np.int64], num_classes: int, width: int) -> None:
        super().__init__()
        most, chosen = math.ceil(MAX_TRACKED / num_classes), []
        for label in np.unique(labels):
            positions = np.flatnonzero(labels == label)
            count = min(most, len(positions))
            chosen.append(positions[np.arange(count) * len(positions) // count])
        index = torch.from_numpy(np.concatenate(chosen))[:MAX_TRACKED]
        place = torch.full((len(labels),), len(index))
        place[index] = torch.arange(len(index))
        # Both follow from the labels and need not be saved.
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("place", place, persistent=False)
        # All samples that are not tracked share a last row: to sort them out would wait for the device.
        self.memory = EmaBank(len(index) + 1, width)

    def update(self, z: Tensor, index: Tensor) -> None:
        """Store embeddings (N, D) of the samples at ``index`` (N,). Collective: call it on every rank."""
        self.memory.update(z, self.place[index], momentum=0)

    def known(self) -> tuple[Tensor, Tensor]:
        """Embeddings (M, D) of the tracked samples seen so far and their indices (M,); rank 0 only."""
        seen = self.memory.seen[:-1].nonzero().flatten()
        return self.memory.rows[seen], self.index[seen]


class OnlineProbe(nn.Module):
    """Softmax regression on standardized features, evaluated on every batch before it trains on it.

    It trains with logit-adjusted cross-entropy (LA, eq. 10, arXiv:2007.07314): with plain cross-entropy
    the few-shot classes of digits stayed at 52 % where this reaches 77 %, at the price of 8 points on
    many-shot classes. From the second epoch on it sees new views of images it was trained on: a measure
    of how the features develop, not of how they generalize. The class shares start with those of the
    training set and follow the batches, which GH may resample.

    All state is in buffers, equal on all ranks, so that a resumed run continues exactly. No gradient
    reaches the backbone, and no random numbers are drawn.

    Args:
        num_features: Number of features F.
        class_counts: Training images per class, shape (C,); an empty class is never predicted.
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
        num_classes, total = len(class_counts), class_counts.sum()
        self.window = SHARE_WINDOW * int(total)
        for name in ("weight", "first", "second"):  # the last column is the bias
            self.register_buffer(name, torch.zeros(num_classes, num_features + 1))
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(num_features))
        # A class starts with one imaginary image at chance, so that its accuracy is always defined.
        self.register_buffer("hits", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("trials", torch.ones(num_classes))
        self.register_buffer("shares", (class_counts / total).float())
        self.register_buffer("steps", torch.tensor(0))

    @property
    def class_accuracy(self) -> Tensor:
        """Accuracy on about the last 50 images per class, shape (C,); chance before the first."""
        return self.hits / self.trials

    @torch.no_grad()
    @in_float32
    def update(self, features: Tensor, labels: Tensor) -> Tensor:
        """Accuracy () on the features (N, F) of all ranks, then a step on them. Collective: call it on every rank."""
        features, _ = gather(features.detach().float())
        labels, _ = gather(labels.to(features.device))
        self.steps += 1
        # Moments of about the last 100 batches, since the backbone changes.
        share = 1 / self.steps.clamp(max=FEATURE_WINDOW)
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        change = mean - self.mean
        self.mean += share * change
        self.variance += share * (variance - self.variance + (1 - share) * change.square())
        # Variance 1/F, so that scores are of order one for any F; that of a constant feature is rounding error.
        floor = (1e-4 * self.mean.abs()).clamp(min=torch.finfo(torch.float32).tiny)
        deviation = self.variance.sqrt().clamp(min=floor)
        inputs = (features - self.mean) / deviation / features.shape[1] ** 0.5
        inputs = F.pad(inputs, (0, 1), value=1.0)
        scores = inputs @ self.weight.T
        right = (scores.masked_fill(self.shares == 0, -torch.inf).argmax(1) == labels).float()
        # A new image takes 1/50 of the weight in the accuracy of its class.
        new = torch.zeros_like(self.trials).index_add(0, labels, torch.ones_like(right))
        kept = (1 - 1 / CLASS_WINDOW) ** new
        self.hits.mul_(kept).index_add_(0, labels, right)
        self.trials.mul_(kept).add_(new)
        self.shares.lerp_(new / len(labels), 1 - (1 - 1 / self.window) ** len(labels))
        # Adam (arXiv:1412.6980, algorithm 1), written out because torch's state is not in buffers.
        error = (scores + self.shares.log()).softmax(1) - F.one_hot(labels, len(self.weight))
        gradient = error.T @ inputs / len(inputs)
        self.first.lerp_(gradient, 1 - FIRST)
        self.second.lerp_(gradient.square(), 1 - SECOND)
        first = self.first / (1 - FIRST**self.steps)
        second = self.second / (1 - SECOND**self.steps)
        self.weight -= RATE * first / (second.sqrt() + EPSILON)
        return right.mean()


def labeled_health(
    z: Tensor, labels: Tensor, groups: dict[str, Tensor], *, surrogate: Tensor | None = None
) -> dict[str, float]:
    """Metrics of embeddings z (M, D) with classes (M,), also per group of classes (C,); waits for the device.

    ``knn`` is the accuracy of a vote of the 20 nearest other samples. A surrogate label of -1, none, counts as a class.
    What cannot be computed is left out.
    """
    values: dict[str, float] = {}
    per_class: dict[str, Tensor] = {}
    num_classes = len(groups["many"])
    if len(z) > 1:
        votes = nearest_neighbor_votes(
            z,
            z,
            labels,
            num_classes=num_classes,
            neighbors=min(NEIGHBORS, len(z) - 1),
            temperature=TEMPERATURE,
            leave_one_out=True,
        )
        predictions = votes.argmax(1)
        values["knn"] = float((predictions == labels).float().mean())
        per_class["knn_balanced"] = class_accuracy(predictions, labels, num_classes)
        per_class |= _class_distances(z, labels, num_classes)
    for name, numbers in per_class.items():
        prefix = name.removesuffix("_balanced")
        masks = {f"{prefix}_{group}": mask for group, mask in groups.items()}
        masks[name] = torch.ones(num_classes, dtype=torch.bool)
        means = group_means(numbers.cpu(), masks)
        values |= {key: mean for key, mean in means.items() if mean is not None}
    if surrogate is not None and len(labels) > 0:
        values["nmi"] = mutual_information(surrogate + 1, labels)
        values["purity"] = float(purity(surrogate + 1, labels))
    return values


def _class_distances(z: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Distances (C,) of the class means of z (M, D) to the others; nan for absent classes, none for one class alone."""
    z = F.normalize(z.float())
    present = torch.bincount(labels, minlength=num_classes).nonzero().flatten()
    if len(present) < 2:
        return {}
    sums = z.new_zeros(num_classes, z.shape[1]).index_add(0, labels, z)[present]
    nearest = min(10, max(1, len(present) // 10))  # the papers' number was not at hand
    found = {
        "inter_class_uniformity": inter_class_uniformity(sums),
        "neighborhood_uniformity": neighborhood_uniformity(sums, nearest),
    }
    absent = z.new_full((num_classes,), torch.nan)
    return {name: absent.index_copy(0, present, distances) for name, distances in found.items()}


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Normalized mutual information of two labelings (M,)."""
    return float(normalized_mutual_info_score(first.cpu().numpy(), second.cpu().numpy()))
