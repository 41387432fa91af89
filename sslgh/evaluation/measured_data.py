"""The data that a result was measured on."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from sslgh.data import ImageSet
from sslgh.recipe.data import Data
from sslgh.recipe.run_recipe import absolute_path


@dataclass(frozen=True)
class MeasuredData:
    """Training and test data of a probe.

    Attributes:
        source: Kind of the data, as ``data.source``; ``features`` for a file of features.
        root: Absolute path of the data.
        test: Absolute path of the test images or their list, if one was given.
        fingerprint: Hash of the test set: of its pixels, or names and bytes, and labels; of the labels alone for
            features, which differ between backbones.
        train_fingerprint: Hash of the training set of the heads, or of its features.
        test_images: Number of test images.
        train_images: Number of training images.
    """

    source: str
    root: str
    test: str | None
    fingerprint: str
    train_fingerprint: str
    test_images: int
    train_images: int

    @property
    def key(self) -> str:
        """Eight hex digits that differ between data."""
        both = f"{self.train_fingerprint} {self.fingerprint}".encode()
        return hashlib.blake2b(both, digest_size=4).hexdigest()

    @property
    def test_set(self) -> str:
        """Words that name the test set."""
        return f"{self.test_images} images of {self.test or self.root} ({self.fingerprint[:8]})"


def measured_on(data: Data, train: ImageSet, test: ImageSet) -> MeasuredData:
    """The data of a probe whose heads had the images ``train``."""
    given = data.test_list or data.test_root
    return MeasuredData(
        source=data.source,
        root=absolute_path(data.root),
        test=None if given is None else absolute_path(given),
        fingerprint=test.fingerprint(),
        train_fingerprint=train.fingerprint(),
        test_images=len(test),
        train_images=len(train),
    )


def measured_on_features(
    root: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> MeasuredData:
    """The data of a probe of features (N, F) and labels (N,) that come from ``root``."""
    return MeasuredData(
        source="features",
        root=root,
        test=None,
        fingerprint=_hash(test[1]),
        train_fingerprint=_hash(*train, test[0]),
        test_images=len(test[1]),
        train_images=len(train[1]),
    )


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
