"""A model for photos in Python: ``sslgh.load(MODEL)``.

Shapes: N photos, F features, C classes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sslgh.explore.embed import embed, plan_embedding
from sslgh.explore.embeddings import Embeddings
from sslgh.explore.model import LoadedModel, load_model
from sslgh.explore.photos import Photos, find_photos, listed_photos
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.errors import printable

AnyPath = str | os.PathLike[str]


class PhotoClasses(NamedTuple):
    """Classes of photos.

    Attributes:
        files: N names, as in `Embeddings`.
        names: Name of the most probable class of each.
        probabilities: float32 (N, C); rows sum to 1.
        class_names: C names.
        skipped: Why a photo cannot be read, by its name.
    """

    files: list[str]
    names: list[str]
    probabilities: NDArray[np.float32]
    class_names: tuple[str, ...]
    skipped: dict[str, str]


class PhotoModel:
    """A frozen network with its own preprocessing, on paths and folders of photos.

    Args:
        loaded: Network and preprocessing.
        workers: Loader processes; a core each by default.

    Examples:
        >>> model = PhotoModel(load_model("package:efficientnet-lite0"))
        >>> model.preprocess.size, model.name, model.class_names
        (224, 'package:efficientnet-lite0', ())
    """

    def __init__(self, loaded: LoadedModel, *, workers: int | None = None) -> None:
        self.loaded, self.workers = loaded, workers

    @property
    def name(self) -> str:
        """Name that it was loaded by."""
        return self.loaded.name

    @property
    def preprocess(self) -> Preprocessing:
        """Makes the network's input from a PIL image."""
        return self.loaded.preprocess

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names; empty without a classifier."""
        return self.loaded.class_names

    def embed(self, photos: AnyPath | Sequence[AnyPath]) -> Embeddings:
        """Features of a folder's photos, or of paths in their order; broken ones are in ``skipped``.

        Raises:
            DataError: If there is no photo that can be read.
        """
        plan = plan_embedding(self.loaded, lambda: _photos(photos))
        return embed(self.loaded, plan, workers=self.workers)

    def predict(self, photos: AnyPath | Sequence[AnyPath]) -> PhotoClasses:
        """Classes of a folder's photos, or of paths in their order.

        Raises:
            ValueError: If the model has no classifier.
            DataError: As for `embed`.
        """
        classifier = self.loaded.classifier
        if classifier is None:
            raise ValueError(
                f"{printable(self.name)} has no classifier; load a folder of sslgh classify FOLDER LABELS.csv --out DIR, "
                "which needs labels of some photos, or a run of sslgh finetune"
            )
        found = self.embed(photos)
        weight = next(classifier.parameters(), torch.empty(0))
        with torch.no_grad():
            logits = classifier(torch.from_numpy(found.features).to(weight.device)).float().cpu()
        probabilities = logits.softmax(1).numpy()
        names = [self.class_names[i] for i in probabilities.argmax(1)]
        return PhotoClasses(found.files, names, probabilities, self.class_names, found.skipped)


def _photos(photos: AnyPath | Sequence[AnyPath]) -> Photos:
    if not isinstance(photos, str | os.PathLike):
        return listed_photos(photos)
    path = Path(photos).expanduser()
    return listed_photos([photos]) if path.is_file() else find_photos(path)


def load(model: AnyPath | None = None, *, workers: int | None = None) -> PhotoModel:
    """A model with ``embed(photos)``, ``predict(photos)`` and ``preprocess``, for paths and folders of photos.

    Args:
        model: A run directory, a folder of ``sslgh classify``, ``timm:NAME``, ``torchvision:NAME``, ``hf-hub:NAME``,
            ``package:efficientnet-lite0`` or a file of weights; None for `default_model`.
        workers: Loader processes; a core each by default.

    Raises:
        ValueError: If nothing of that name can be loaded.
    """
    return PhotoModel(load_model(None if model is None else os.fspath(model)), workers=workers)
