"""Metrics of a refresh of the population."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslgh.data import ImageSet
from sslgh.engine.monitor.labels import mutual_information
from sslgh.functional import entropy, gini, purity
from sslgh.harmonize import GeometricHarmonizer, Refresh


def describe_refresh(
    harmonizer: GeometricHarmonizer, images: ImageSet, before: Tensor | None = None
) -> tuple[dict[str, Any], str]:
    """Metrics of the last refresh for the log, and a line for the terminal.

    With labels, which training never sees: the total variation between the sorted shares of the
    surrogate classes and of the true ones, their normalized mutual information, and the purity of the
    surrogate classes.

    Args:
        harmonizer: Harmonizer after a refresh.
        images: The training set.
        before: Surrogate labels before the refresh, shape (N,), to compare with; or None.

    Raises:
        RuntimeError: If there was no refresh yet.
    """
    refresh = harmonizer.last_refresh
    if refresh is None:
        raise RuntimeError("nothing was refreshed yet; call begin_epoch first")
    values: dict[str, Any] = dict(refresh._asdict())
    values |= surrogate_health(
        harmonizer.labels,
        harmonizer.instance_weight,
        num_vertices=len(harmonizer.prior),
        before=before,
    )
    values["prior"] = [round(share, 5) for share in harmonizer.prior.tolist()]
    text = f"epoch {refresh.epoch}: " + _summary(refresh)
    if images.labels is not None:
        prior = harmonizer.prior.cpu().numpy()
        values["prior_error"] = sorted_total_variation(prior, np.bincount(images.labels))
        # Samples without a surrogate label count as a class.
        surrogate, truth = harmonizer.labels.cpu() + 1, torch.from_numpy(images.labels)
        values["nmi"] = mutual_information(surrogate, truth)
        values["purity"] = float(purity(surrogate, truth))
        text += f"; against the labels: prior error {values['prior_error']:.3f}, NMI {values['nmi']:.3f}"
    return values, text


def _summary(refresh: Refresh) -> str:
    classes = (
        f"{refresh.classes} surrogate classes, shares {refresh.smallest:.2%} to {refresh.largest:.2%}, churn "
        f"{refresh.churn:.1%}"
    )
    if refresh.visibility is None:
        return classes
    measured = f"visibility {refresh.visibility:.2f}"
    if refresh.accepted:
        return f"{measured}, {classes}, drift {refresh.drift:.2f}, weights up to {refresh.largest_weight:.1f}"
    return (
        f"{measured}: the clusters do not recur, so kinds of images are not visible in the embeddings; weights and "
        "the GH term stay as they are"
    )


def surrogate_health(
    labels: Tensor, weight: Tensor, *, num_vertices: int, before: Tensor | None = None
) -> dict[str, float]:
    """Unevenness of the surrogate classes and of the weights, and stability of the classes.

    Args:
        labels: Surrogate labels, shape (N,); -1 for none.
        weight: Instance weights, shape (N,), mean 1.
        num_vertices: Number of vertices K.
        before: Surrogate labels before the refresh, shape (N,), to compare with; or None.

    Returns:
        ``weight_std``, and ``effective_samples``: the share (sum w)^2 / (N sum w^2) that the weights leave
        of the samples (Kish). ``entropy`` (nats) and ``gini`` of the surrogate classes in use, and the number
        of ``empty`` vertices; before the first classes are found, all samples are in one. With ``before``
        also ``refresh_nmi`` of the two labelings, which unlike churn ignores names; samples without a
        label count as a class.

    Examples:
        Two surrogate classes of 3 and 1 of four vertices, and one weight of 4 among zeros, all that
        counts for a quarter of the samples:

        >>> labels, weight = torch.tensor([0, 0, 0, 2]), torch.tensor([0.0, 0.0, 0.0, 4.0])
        >>> health = surrogate_health(labels, weight, num_vertices=4, before=labels)
        >>> [health[name] for name in ("effective_samples", "gini", "empty", "refresh_nmi")]
        [0.25, 0.25, 2, 1.0]
    """
    counts = torch.bincount(labels[labels >= 0], minlength=num_vertices)
    used = counts[counts > 0] if counts.any() else counts.new_ones(1)
    values = {
        "entropy": float(entropy(used)),
        "gini": float(gini(used)),
        "empty": num_vertices - len(used),
        "weight_std": float(weight.std(correction=0)),
        "effective_samples": float(weight.sum().square() / (len(weight) * weight.square().sum())),
    }
    if before is not None:
        values["refresh_nmi"] = mutual_information(before + 1, labels + 1)
    return values


def sorted_total_variation(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Half the L1 distance between two sets of shares, each sorted and normalized.

    Args:
        first: Shares or counts per class.
        second: Shares or counts per class; the shorter array is filled with zeros.

    Examples:
        >>> sorted_total_variation(np.array([1, 3]), np.array([0.75, 0.25, 0.0]))
        0.0
    """
    length = max(len(first), len(second))
    shares = [np.sort(np.pad(s / s.sum(), (0, length - len(s)))) for s in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
