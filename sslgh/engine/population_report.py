"""A refresh of the population in numbers, against the truth where labels are known."""

from typing import Any

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from sslgh.data import ImageSet
from sslgh.harmonize import GeometricHarmonizer


def describe_refresh(
    harmonizer: GeometricHarmonizer, images: ImageSet
) -> tuple[dict[str, Any], str]:
    """Numbers of the last refresh for the log, and a line for the terminal.

    With labels (never used in training): the total variation between the sorted shares of the
    surrogate classes and of the true ones, and their normalised mutual information.
    """
    refresh = harmonizer.last_refresh
    if refresh is None:
        raise RuntimeError("nothing was refreshed yet; call begin_epoch first")
    values: dict[str, Any] = dict(refresh._asdict())
    values["prior"] = [round(share, 5) for share in harmonizer.prior.tolist()]
    if refresh.classes == 1:
        text = f"epoch {refresh.epoch}: no groups in the embeddings yet, the prior stays uniform"
    else:
        text = (
            f"epoch {refresh.epoch}: {refresh.classes} surrogate classes, shares "
            f"{refresh.smallest:.2%} to {refresh.largest:.2%}, churn {refresh.churn:.1%}"
        )
    if images.labels is not None:
        surrogate, truth = harmonizer.labels.cpu().numpy(), images.labels
        prior = harmonizer.prior.cpu().numpy()
        values["prior_error"] = sorted_total_variation(prior, np.bincount(truth))
        values["nmi"] = float(normalized_mutual_info_score(truth, surrogate))
        text += f"; against the labels: prior error {values['prior_error']:.3f}, NMI {values['nmi']:.3f}"
    return values, text


def sorted_total_variation(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Half the L1 distance between two sets of shares, each sorted and normalised.

    Args:
        first: Shares or counts, of any number of classes.
        second: Likewise; the shorter is filled with zeros.

    Examples:
        >>> sorted_total_variation(np.array([1, 3]), np.array([0.75, 0.25, 0.0]))
        0.0
    """
    length = max(len(first), len(second))
    shares = [np.sort(np.pad(s / s.sum(), (0, length - len(s)))) for s in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
