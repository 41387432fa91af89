"""Kinds of new photos, with how sure that is. Shapes: N photos, C kinds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslgh.explore.look_tables import write_table
from sslgh.explore.photo_classifier import CHUNK, PhotoClassifier

# Below it the kind is more likely wrong than right.
UNSURE = 0.5


class PhotoKinds(NamedTuple):
    """Kinds of N photos, the most probable first.

    Attributes:
        files: N names.
        kinds: Positions of the K most probable kinds, int64 (N, K).
        probabilities: Probabilities of these, float64 (N, K).
        unlike: Which photos are unlike anything that was labeled, (N,); None: not measured.
        class_names: C names.
    """

    files: Sequence[str]
    kinds: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    unlike: NDArray[np.bool_] | None
    class_names: tuple[str, ...]

    @property
    def unsure(self) -> NDArray[np.bool_]:
        """Whose kind is more likely wrong than right, (N,)."""
        return self.probabilities[:, 0] < UNSURE


def photo_kinds(
    classifier: PhotoClassifier,
    features: NDArray[np.float32],
    files: Sequence[str],
    *,
    prior: Tensor | None = None,
    top: int = 2,
) -> PhotoKinds:
    """Predict features (N, F).

    Args:
        classifier: Kinds by features.
        features: Shape (N, F).
        files: N names.
        prior: Expected shares of the kinds, shape (C,); None: as the classifier decides.
        top: K; at most C are given.
    """
    rows = torch.from_numpy(features)
    places = min(top, len(classifier.class_names))
    # Probabilities of all kinds are of one chunk at a time: those of many photos would not fit into memory.
    chunks = [classifier.posterior(part, prior).topk(places) for part in torch.split(rows, CHUNK)]
    kinds = torch.cat([chunk.indices for chunk in chunks])
    probabilities = torch.cat([chunk.values for chunk in chunks])
    unlike = None if classifier.novelty is None else classifier.novelty.unlike(rows).numpy()
    return PhotoKinds(files, kinds.numpy(), probabilities.numpy(), unlike, classifier.class_names)


def write_predictions(found: PhotoKinds, path: Path) -> None:
    """Write a CSV file: file, kind, probability, second, ..., unsure, unlike anything seen."""
    columns = ["kind", "probability"]
    for place in range(2, found.kinds.shape[1] + 1):
        columns += [_ordinal(place), f"{_ordinal(place)}_probability"]
    write_table(path, ("file", *columns, "unsure", "unlike_anything_seen"), _rows(found))


def _ordinal(place: int) -> str:
    return {2: "second", 3: "third"}.get(place, f"kind_{place}")


def _rows(found: PhotoKinds) -> Iterator[tuple[object, ...]]:
    unsure = found.unsure.tolist()
    unlike = ["" if found.unlike is None else value for value in _words(found)]
    for i, file in enumerate(found.files):
        cells: list[str] = []
        for kind, probability in zip(found.kinds[i], found.probabilities[i], strict=True):
            cells += [found.class_names[kind], f"{probability:.4f}"]
        yield (file, *cells, "yes" if unsure[i] else "no", unlike[i])


def _words(found: PhotoKinds) -> list[str]:
    if found.unlike is None:
        return [""] * len(found.files)
    return ["yes" if value else "no" for value in found.unlike.tolist()]
