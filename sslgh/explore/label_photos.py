"""From the features of a folder and labels of some photos to heads, their figures, and what to look at next.

Shapes: N photos, M labeled photos, F features, D dimensions, C kinds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslgh.classify.ensemble import FeatureScaler
from sslgh.classify.selection import NEVER
from sslgh.data.image_set import DataError
from sslgh.engine.memory import free_memory, gigabytes
from sslgh.explore.classifier_folder import Fitted, classifier_of
from sslgh.explore.copy_folds import copy_units, folds_of_units
from sslgh.explore.directions import centered, directions
from sslgh.explore.findings import NEAREST
from sslgh.explore.head_choice import DEFAULT, UNMEASURED, Comparison, compare_heads
from sslgh.explore.near_copies import near_copies
from sslgh.explore.neighbors import nearest_neighbors
from sslgh.explore.next_labels import likeliest, next_labels
from sslgh.explore.novelty import fitted_novelty
from sslgh.explore.photo_classifier import CHUNK
from sslgh.explore.photo_heads import (
    OBJECTIVES,
    decision,
    folder_scaler,
    out_of_fold_scores,
    trained_heads,
)
from sslgh.explore.select import NONE, Choice
from sslgh.explore.wrong_labels import Suspect, likely_wrong
from sslgh.functional.calibration import calibration_error
from sslgh.functional.temperature import fitted_temperature
from sslgh.recipe.errors import printable

FOLDS = 5


class Labeled(NamedTuple):
    """All that is made from labels.

    Attributes:
        fitted: Heads, to be saved.
        comparison: Heads side by side, out of fold.
        held_out: Number of labeled photos that were predicted out of fold.
        copies: Number of labeled photos that are near copies of an earlier one.
        single: Kinds that are never held out: all their photos are one.
        calibration: Expected calibration error of the chosen head out of fold; None: not measured.
        wrong: Labels that are likely wrong; ``row`` counts all photos.
        next: Photos to label next.
    """

    fitted: Fitted
    comparison: Comparison
    held_out: int
    copies: int
    single: list[str]
    calibration: float | None
    wrong: list[Suspect]
    next: list[Choice]


class _Measured(NamedTuple):
    comparison: Comparison
    temperature: float
    calibration: float | None
    wrong: list[Suspect]


def label_photos(
    features: NDArray[np.float32],
    files: Sequence[str],
    kinds: Mapping[str, str],
    hashes: NDArray[np.uint64] | None = None,
) -> Labeled:
    """Train heads on the labeled photos of a folder and predict the others.

    Args:
        features: Shape (N, F).
        files: N names.
        kinds: Kind of each labeled photo by its name.
        hashes: Perceptual hashes, shape (N,), by which copies are found as `sslgh look` does; None: by features alone.

    Raises:
        DataError: If all labels are of one kind, or scores of all labeled photos do not fit into memory.
    """
    names = tuple(sorted(set(kinds.values())))
    _check(kinds, names)
    _check_memory(len(kinds), len(names))
    number = {name: label for label, name in enumerate(names)}
    known = np.array([number.get(kinds.get(file, ""), NONE) for file in files], dtype=np.int64)
    rows = directions(features)
    place = np.flatnonzero(known != NONE)
    labels = torch.from_numpy(known[place])
    inputs = torch.from_numpy(features[place])
    units = _units(features, rows, hashes)[place]
    part = _parts(labels, units)
    counts = torch.bincount(labels, minlength=len(names))
    every = torch.from_numpy(features)
    scaler = folder_scaler(every)
    measured = _measured(inputs, labels, part, counts, scaler)
    heads = trained_heads(inputs, labels, len(names), scaler=scaler)
    held_out = part != NEVER
    center = torch.from_numpy(features.mean(0, dtype=np.float64).astype(np.float32))
    novelty = fitted_novelty(inputs, center, torch.from_numpy(units), held_out)
    chosen = measured.comparison.chosen
    fitted = Fitted(names, counts, heads, chosen, measured.temperature, novelty)
    classifier = classifier_of(fitted, "")
    return Labeled(
        fitted,
        measured.comparison,
        int(held_out.sum()),
        len(units) - len(np.unique(units)),
        [names[k] for k in sorted(set(labels.tolist()) - set(labels[held_out].tolist()))],
        measured.calibration,
        [suspect._replace(row=int(place[suspect.row])) for suspect in measured.wrong],
        next_labels(
            rows,
            likeliest(classifier.posterior(part).numpy() for part in torch.split(every, CHUNK)),
            known,
            names,
            unlike=novelty.unlike(every).numpy(),
        ),
    )


def _units(
    features: NDArray[np.float32], rows: NDArray[np.float32], hashes: NDArray[np.uint64] | None
) -> NDArray[np.int64]:
    """Numbers (N,), the same for near copies."""
    if hashes is None:
        return copy_units(centered(features))
    units = np.arange(len(rows))
    for group in near_copies(nearest_neighbors(rows, NEAREST), hashes, features).groups:
        units[group] = group[0]
    return units


def _check(kinds: Mapping[str, str], names: Sequence[str]) -> None:
    if len(names) < 2:
        raise DataError(
            f"all {len(kinds)} labels are of one kind, {printable(names[0])}; a classifier needs photos of 2 at least: "
            "label some of another kind"
        )


def _check_memory(labels: int, kinds: int) -> None:
    """Refuse what would end the process: scores of every labeled photo for every kind, float64, per head and a copy.

    Raises:
        DataError: If there is less free memory than that.
    """
    needed, free = 2 * len(OBJECTIVES) * 8 * labels * kinds, free_memory()
    if needed > free:
        raise DataError(
            f"out-of-fold scores of {labels:,} labels for {kinds:,} kinds need about {gigabytes(needed)}, but "
            f"{gigabytes(free)} of memory are free; label fewer photos, or take a machine with more memory"
        )


def _parts(labels: Tensor, units: NDArray[np.int64]) -> Tensor:
    """Folds, or -1 for all where every kind is a single photo."""
    try:
        return folds_of_units(labels, units, FOLDS)
    except ValueError:
        return torch.full_like(labels, NEVER)


def _measured(
    inputs: Tensor, labels: Tensor, part: Tensor, counts: Tensor, scaler: FeatureScaler
) -> _Measured:
    """Figures of out-of-fold predictions; without any the default head, as it is."""
    held_out = part != NEVER
    if not held_out.any():
        return _Measured(Comparison({}, "thresholds", DEFAULT, UNMEASURED), 1.0, None, [])
    scores = out_of_fold_scores(inputs, labels, part, len(counts), scaler)
    scores = {name: found[held_out] for name, found in scores.items()}
    truth, prior = labels[held_out], counts.double() / counts.sum()
    predictions = {name: decision(found, name, prior) for name, found in scores.items()}
    comparison = compare_heads(predictions, truth, counts)
    best = scores[comparison.chosen]
    temperature = fitted_temperature(best, truth, prior)
    posterior = (best / temperature + prior.log()).softmax(1)
    confidence, predicted = posterior.max(1)
    error = calibration_error(confidence, predicted == truth).item()
    place = held_out.nonzero().flatten()
    wrong = [s._replace(row=int(place[s.row])) for s in likely_wrong(posterior, truth)]
    return _Measured(comparison, temperature, error, wrong)
