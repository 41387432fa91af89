"""Features of a frozen backbone: extracted once, kept in a cache that is keyed by their origin.

Shapes: N images, S side (pixels), F features.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import uuid4

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from sslgh.data import DataError, EvalDataset, ImageSet, num_workers
from sslgh.data.arrays import UNREADABLE
from sslgh.data.image_set import QUARANTINE, READS_NOW, check_classes, read_error, read_quarantine
from sslgh.distributed import gather
from sslgh.models.fingerprint import tensor_bytes, weights_fingerprint
from sslgh.models.serialization import save_tensors
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.data import Data
from sslgh.recipe.errors import located, some_of

log = logging.getLogger(__name__)

# Part of every cache key: raise it when extraction itself changes.
VERSION = 1


class IndexedImages(Protocol):
    """A data set of (uint8 (3, S, S), index), the index being the position asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def extract_features(
    backbone: nn.Module,
    dataset: IndexedImages,
    *,
    accelerator: Accelerator,
    batch_size: int = 256,
    workers: int = 0,
) -> Tensor:
    """Features of every image, in the order of the data set.

    The backbone is in eval mode and gradients are off while this runs; afterwards it is as it
    was. Each process takes every P-th image and all of them get the whole result; no image is
    seen twice.

    Args:
        backbone: (N, 3, S, S) to (N, F), on any device.
        dataset: Images and their positions, N >= 1.
        accelerator: The processes and the device.
        batch_size: Images of one step of one process.
        workers: Loader processes.

    Returns:
        Shape (N, F), float32, on the CPU.

    Raises:
        ValueError: If the set is empty, the output is not (N, F), or a feature is not finite.
    """
    if len(dataset) == 0:
        raise ValueError("features need at least one image, the set is empty")
    with frozen(backbone, accelerator.device):
        parts = list(_parts(backbone, dataset, accelerator, batch_size, workers))
    rows = torch.cat([index for index, _ in parts])
    stacked = torch.cat([part for _, part in parts])
    features = torch.full((len(dataset), stacked.shape[1]), torch.nan)
    features[rows] = stacked
    if broken := (~features.isfinite().all(1)).nonzero().flatten().tolist():
        raise ValueError(
            f"the backbone gives features that are not finite for {len(broken)} of {len(dataset)} images, "
            f"the first at position {broken[0]}; the weights or the image are broken"
        )
    return features


def _parts(
    backbone: nn.Module,
    dataset: IndexedImages,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions (M,) and features (M, F) of all processes, step by step, on the CPU."""
    own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    loader = DataLoader(
        Subset(_as_dataset(dataset), own), batch_size=batch_size, num_workers=workers
    )
    longest = -(-len(dataset) // accelerator.num_processes)
    batches = iter(loader)
    steps = tqdm(
        range(-(-longest // batch_size)),
        desc="features",
        unit="batch",
        disable=None if accelerator.is_main_process else True,  # None: no bar in a log file
        leave=False,
    )
    for _ in steps:
        # A process may run out of images one step before the others, but never out of gathers.
        images, index = next(batches, (None, torch.zeros(0, dtype=torch.int64)))
        if images is None:
            images = dataset[0][0][None]
        features = forward_features(backbone, images.to(accelerator.device))[: len(index)]
        yield (
            gather(index.to(accelerator.device))[0].cpu(),
            gather(features)[0].cpu(),
        )


def forward_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features (N, F), float32, of uint8 images (N, 3, S, S) on the backbone's device; call it inside `frozen`.

    Raises:
        ValueError: If the backbone gives anything else.
    """
    images = Preprocessing.of(backbone).normalize(images)
    features = backbone(images.contiguous(memory_format=torch.channels_last))
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"a backbone must give ({len(images)}, F) for {len(images)} images, got {tuple(features.shape)}"
        )
    assert not features.requires_grad
    return torch.as_tensor(features).float().contiguous()


def _as_dataset(dataset: IndexedImages) -> Dataset[tuple[Tensor, int]]:
    return dataset  # type: ignore[return-value]


@contextmanager
def frozen(backbone: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode comes back."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.to(device).eval()
    assert not any(module.training for module in backbone.modules())
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def cached_features(
    backbone: nn.Module,
    images: ImageSet,
    data: Data,
    *,
    size: int,
    directory: Path,
    accelerator: Accelerator,
    weak: bool = False,
) -> Tensor | None:
    """`extract_features` of images, cached in ``directory/features``. Collective: call it on every rank.

    A file is named by a hash of weights, architecture, images (their bytes) and transform, and carries a
    hash of its content: stale or damaged features are extracted again. A failed write is logged.

    Args:
        backbone: (N, 3, S, S) to (N, F).
        images: N images.
        data: Data section of the recipe, for the number of loader workers.
        size: S.
        weak: Use one weakly augmented view per image, drawn with seed 0.
        directory: The run directory.
        accelerator: Processes and device; rank 0 reads and writes.

    Returns:
        Shape (N, F), float32, on the CPU of rank 0; None on other ranks.

    Raises:
        DataError: If an image cannot be read: an accuracy over fewer images is not comparable.
    """
    preprocessing = Preprocessing.of(backbone).at(size)
    view = f"{'Weak' if weak else 'Plain'} {preprocessing} seed 0 version {VERSION}"
    features = None
    if accelerator.is_main_process:  # other ranks would read all files again
        key = weights_fingerprint(backbone, f"{view}\n{images.fingerprint}")
        path = directory / "features" / f"{key}.safetensors"
        features = _read(path)
    # The same decision on all ranks: a rank without the file would wait for gathers that never come.
    held = [features is not None]
    broadcast_object_list(held)
    if not held[0]:
        dataset = EvalDataset(images, preprocessing, weak_seed=0 if weak else None)
        workers = num_workers(data, in_memory=images.in_memory)
        try:
            features = extract_features(backbone, dataset, accelerator=accelerator, workers=workers)
        except DataError as error:
            raise DataError(
                f"{error}; an evaluation leaves none out: `sslgh scan` lists all that are broken"
            ) from error
        if accelerator.is_main_process:
            _write(path, features)
    return features if accelerator.is_main_process else None


def _content(features: Tensor) -> str:
    return hashlib.blake2b(tensor_bytes(features), digest_size=16).hexdigest()


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        log.warning("%s is damaged (%s); its features are extracted again", path, error)
        return None
    if metadata.get("content") != _content(features):
        log.warning("%s is damaged (its content changed); its features are extracted again", path)
        return None
    return features


def _write(path: Path, features: Tensor) -> None:
    """Keep the features for another time, where that can be done."""
    # A name of its own: two probes of one run may write at once.
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"features": features}, temporary, metadata={"content": _content(features)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning(
            "features cannot be kept in %s (%s); the next probe extracts them again",
            path.parent,
            str(error).splitlines()[0],
        )
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unreadable_names(images: ImageSet, directory: Path, accelerator: Accelerator) -> frozenset[str]:
    """Names of the images that the run in ``directory`` found broken and that still are.

    Collective: call it on every rank; rank 0 reads the images and logs a warning.

    Args:
        images: The training split.
        directory: The run directory.
        accelerator: Processes of the run.

    Raises:
        DataError: If the run's report is damaged.
    """
    # Read by every rank, so that a damaged report stops them all.
    named = read_quarantine(directory)
    found: list[frozenset[str]] = [frozenset()]
    if accelerator.is_main_process and named:
        positions = [i for i, name in enumerate(images.names) if name in named]
        broken = [i for i in positions if read_error(images, i) != READS_NOW]
        found = [frozenset(images.names[i] for i in broken)]
    broadcast_object_list(found)
    if accelerator.is_main_process and found[0]:
        log.warning(
            "%d training images cannot be read and are left out of the training features (%s names them)",
            len(found[0]),
            directory / QUARANTINE,
        )
    return found[0]


def without(images: ImageSet, names: frozenset[str]) -> ImageSet:
    """Images without the given names; the same set if none occurs."""
    kept = np.array([name not in names for name in images.names], dtype=bool)
    return images if kept.all() else images.subset(np.flatnonzero(kept))


class FeatureFile(NamedTuple):
    """Features and labels of a training and a test set."""

    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor


def load_feature_file(path: Path) -> FeatureFile:
    """Read ``train_features, train_labels, test_features, test_labels`` from an .npz file.

    Features are floats (N, F) with one F, labels integers (N,) from 0.

    Raises:
        ValueError: If the file is missing or no .npz, or an array is missing, misshapen or not finite.
    """
    arrays = _read_arrays(path)
    if missing := [name for name in FeatureFile._fields if name not in arrays]:
        raise ValueError(
            f"{path}: array {missing[0]} is missing; expected {', '.join(FeatureFile._fields)}, got "
            f"{some_of(list(arrays)) or 'none'}"
        )
    for split in ("train", "test"):
        _check_arrays(path, split, arrays[f"{split}_features"], arrays[f"{split}_labels"])
    widths = [arrays[f"{split}_features"].shape[1] for split in ("train", "test")]
    if widths[0] != widths[1]:
        raise ValueError(f"{path}: train_features are {widths[0]} wide, test_features {widths[1]}")
    return FeatureFile(
        torch.from_numpy(arrays["train_features"].astype(np.float32)),
        torch.from_numpy(arrays["train_labels"].astype(np.int64)),
        torch.from_numpy(arrays["test_features"].astype(np.float32)),
        torch.from_numpy(arrays["test_labels"].astype(np.int64)),
    )


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise ValueError(f"{located(path)} does not exist; expected an .npz file of features")
    try:
        # Opened here: NumPy leaves the file open when it is no archive. Pickled arrays could run code.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            # A member that is no array comes as its bytes, and is refused by its shape.
            return {name: np.asarray(file[name]) for name in file.files}
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as an .npz file without pickles: {error}"
        ) from error


def _check_arrays(
    path: Path, split: str, features: NDArray[np.generic], labels: NDArray[np.generic]
) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or features.size == 0:
        raise ValueError(
            f"{path}: {split}_features and {split}_labels must be (N, F) and (N,), got {features.shape} and {labels.shape}"
        )
    if labels.dtype.kind not in "iu" or int(labels.min()) < 0:
        got = labels.dtype if labels.dtype.kind not in "iu" else int(labels.min())
        raise ValueError(f"{path}: {split}_labels must be integers from 0, got {got}")
    check_classes(f"array {split}_labels of {path}", int(labels.max()))
    if not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"{path}: {split}_features must be floats, got {features.dtype}")
    if broken := int((~np.isfinite(features.astype(np.float32))).any(1).sum()):
        raise ValueError(
            f"{path}: {broken} of {len(features)} rows of {split}_features hold nan or inf"
        )


def check_features(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    """Refuse features on which no classifier could be trained and evaluated.

    Args:
        train: Features (N, F) and labels (N,).
        test: The same of the test set.

    Raises:
        ValueError: If shapes do not fit, the sets differ in width, features are not finite, or classes disagree.
    """
    for split, (values, labels) in (("training", train), ("test", test)):
        _check_split(split, values, labels)
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"training features are {train[0].shape[1]} wide and test features {test[0].shape[1]}; take both from one "
            "backbone"
        )
    if not torch.isin(test[1].cpu(), train[1].cpu()).any():
        raise ValueError(
            f"no test image is of a trained class: training labels are {_range(train[1])}, test labels "
            f"{_range(test[1])}; number the classes of both sets alike"
        )


def _check_split(split: str, values: Tensor, labels: Tensor) -> None:
    if values.ndim != 2 or labels.shape != values.shape[:1] or len(values) == 0:
        raise ValueError(
            f"{split} features and labels must be (N, F) and (N,), N >= 1, got {tuple(values.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{split} labels must be integers, got {labels.dtype}")
    if int(labels.min()) < 0:
        raise ValueError(f"{split} labels must count from 0, got {_range(labels)}")
    if broken := int((~values.isfinite()).any(1).sum()):
        raise ValueError(f"{broken} of {len(values)} rows of the {split} features hold nan or inf")


def _range(labels: Tensor) -> str:
    return f"{int(labels.min())}..{int(labels.max())}"
