"""What a probe found and on which data, as it stands in ``probe/*.json``."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args
from uuid import uuid4

from torch import Tensor

from sslgh.data import ImageSet
from sslgh.evaluation.protocols import PROTOCOLS
from sslgh.functional.groups import GROUPS, STD_DDOF, Convention
from sslgh.recipe.data import Data
from sslgh.recipe.run_recipe import absolute_path

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
# What is known of every objective, by each convention of groups: what `group_metrics` returns; the mean `class_f1`;
# `calibration_error`; the share of few-shot test images taken for a many-shot class, and the reverse; the mean length
# of the weights of many- and of few-shot classes.
METRICS = (
    *(*GROUPS, "std", "average", "balanced_error", "accuracy", "harmonic", "worst"),
    *("macro_f1", "calibration_error", "few_as_many", "many_as_few", "norm_many", "norm_few"),
)

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Spread:
    """A number over seeds: its mean, and its standard deviation with ddof 1 (None for one seed)."""

    mean: float
    std: float | None

    @classmethod
    def over(cls, values: Sequence[float | None]) -> "Spread | None":
        """Spread of one value per seed; None if a value is missing."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(mean(known), stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Scores:
    """One objective under one protocol; shares between 0 and 1.

    Attributes:
        metrics: For each convention of groups the `METRICS` over seeds; None where there is no such thing: a group
            without classes, weights without length.
        class_accuracy: Mean over seeds for each class; None for a class without test images.
        tightness: For an objective with an embedding layer that of its embeddings, as in `Result`.
    """

    metrics: dict[str, dict[str, Spread | None]]
    class_accuracy: list[float | None]
    tightness: dict[str, dict[str, Metrics]] | None = None


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


@dataclass(frozen=True)
class Result:
    """One probe.

    Attributes:
        protocol: Name of the protocol.
        version: Version of the protocol.
        summary: Summary line of the protocol.
        settings: Everything that was set.
        class_names: C names.
        group_counts: Images of each class by which classes are many-, medium- or few-shot: those of pretraining.
        train_counts: Images of each class that the heads, or the neighbors, had.
        test_counts: Test images of each class.
        scores: By objective; ``knn`` for the neighbors.
        tightness: ``train`` and ``test``: for each convention the mean of `class_tightness` of the features over
            the classes of a group, and over all classes.
        chosen: For each objective what was chosen on the training images: ``tau`` (None: it reads none), ``lr``,
            ``weight_decay``; empty where there was no choice.
        std_ddof: Degrees of freedom subtracted in the spread of the three groups.
        data: Data that it was measured on; None in results of older versions.
    """

    protocol: str
    version: int
    summary: str
    settings: dict[str, Any]
    class_names: list[str]
    group_counts: list[int]
    train_counts: list[int]
    test_counts: list[int]
    scores: dict[str, Scores]
    tightness: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    chosen: dict[str, dict[str, float | None]] = field(default_factory=dict)
    std_ddof: int = STD_DDOF
    data: MeasuredData | None = None


def measured_on(data: Data, train: ImageSet, test: ImageSet) -> MeasuredData:
    """The data of a probe whose heads had the images ``train``."""
    given = data.test_list or data.test_root
    return MeasuredData(
        source=data.source,
        root=absolute_path(data.root),
        test=None if given is None else absolute_path(given),
        fingerprint=test.fingerprint,
        train_fingerprint=train.fingerprint,
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


def write_results(results: Sequence[Result], directory: Path) -> None:
    """Write ``probe/<protocol>.json``; the second of a protocol is ``<protocol>-2.json``.

    The results of an earlier version have a file of their own, such as ``longtail-v1.json``. A result of other data than
    the file of that name holds goes to ``<protocol>-<key of the data>.json``.

    Raises:
        OSError: If that fails; the results that were there are still there.
    """
    folder = directory / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    for position, result in enumerate(results):
        name = _protocol(result)
        number = 1 + sum(_protocol(other) == name for other in results[:position])
        path = _path(folder / f"{name}{'' if number == 1 else f'-{number}'}.json", result)
        _replace(path, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def _protocol(result: Result) -> str:
    """As recipes name the protocol: an earlier version has its number in the name."""
    name = f"{result.protocol}-v{result.version}"
    return name if name in PROTOCOLS else result.protocol


def _path(path: Path, result: Result) -> Path:
    """The file of a result: ``path``, unless it holds a result of other data."""
    if result.data is None or not path.is_file():
        return path
    try:
        held = json.loads(path.read_text())
        if held.get("data") is None:
            # Written by an older version, without data: equal counts are taken for the same data.
            counts = ("class_names", "train_counts", "test_counts")
            same = all(held[name] == getattr(result, name) for name in counts)
        else:
            same = MeasuredData(**held["data"]).key == result.data.key
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # damaged: probing again is the remedy
        return path
    return path if same else path.with_name(f"{path.stem}-{result.data.key}.json")


def _replace(path: Path, text: str) -> None:
    # A name of its own: two probes of one run may write at once.
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error.strerror}); make room and probe the run again"
        ) from None


def read_results(directory: Path) -> list[Result]:
    """The results in ``directory/probe``, in order of name.

    Raises:
        ValueError: If a file is no result of a probe.
    """
    return [_read(path) for path in sorted((directory / "probe").glob("*.json"))]


def _read(path: Path) -> Result:
    try:
        content = json.loads(path.read_text())
        scores = {name: _scores(entry) for name, entry in content.pop("scores").items()}
        data = content.pop("data", None)
        return Result(**content, scores=scores, data=None if data is None else MeasuredData(**data))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the result of a probe ({error}); probe the run again"
        ) from error


def _scores(entry: dict[str, Any]) -> Scores:
    metrics: dict[str, dict[str, Spread | None]] = {
        convention: {name: _spread(entry["metrics"][convention][name]) for name in METRICS}
        for convention in CONVENTIONS
    }
    return Scores(metrics, entry["class_accuracy"], entry["tightness"])


def _spread(entry: dict[str, Any] | None) -> Spread | None:
    return None if entry is None else Spread(**entry)
