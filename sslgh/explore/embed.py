"""Features of all photos of a folder: streamed, in shards, resumed, by one process or several.

Shapes: N photos, S side of the network's input (pixels), F features.
"""

import hashlib
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sslgh.data.loader import end_workers, free_workers
from sslgh.distributed import dist_info
from sslgh.engine.exit_codes import Stopped
from sslgh.engine.launch import init_accelerator, run_on_main
from sslgh.evaluation.features import forward_features, frozen
from sslgh.explore.embeddings import Embeddings, Rows, assembled, places, read_rows, write_rows
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.photo_loader import Facts, PhotoBatch, PhotoDataset, photo_loader
from sslgh.explore.photos import Photos, find_photos
from sslgh.explore.results_folder import make_folder
from sslgh.recipe.errors import printable

# Part of every key: raise it when reading or embedding itself changes.
VERSION = 1
# Photos of a shard, and seconds until one is written in any case: what a kill costs at most, per process.
SHARD, SHARD_SECONDS = 512, 60.0
STOPPED = "stopped; the same command goes on from the photos that are embedded"
CRASHED = (
    "a loader process was ended, by a damaged photo that crashes a decoder or for lack of memory; sslgh scan FOLDER names "
    "such photos, and --workers 1 takes less memory"
)


class Plan(NamedTuple):
    """What there is to embed.

    Attributes:
        photos: All N photos.
        pending: Positions of those that no file has features of yet.
        out: The .npz file, or None: the features are kept in memory only.
        key: Hash of model, preprocessing and facts.
    """

    photos: Photos
    pending: list[int]
    out: Path | None
    key: str

    @property
    def shards(self) -> list[Path]:
        """Files of features that are not yet in ``out``."""
        return [] if self.out is None else sorted(_shard_folder(self.out).glob("*.npz"))


def embed_folder(
    model: LoadedModel,
    folder: Path,
    *,
    out: Path | None = None,
    facts: Facts | None = None,
    workers: int | None = None,
    batch_size: int = 64,
) -> Embeddings:
    """Features of every photo under a folder. Collective: call it on every rank.

    With ``out`` only photos that are new or changed since (by name, size and time of change) are embedded, and a
    process that is killed loses `SHARD` photos or `SHARD_SECONDS` at most.

    Args:
        model: Network and preprocessing.
        folder: Any tree of images.
        out: An .npz file to resume from and to write.
        facts: Function of each decoded image, called in the loader processes.
        workers: Loader processes per rank; a core each by default.
        batch_size: Photos in one step of one rank.

    Returns:
        All of them on rank 0; without rows on other ranks.

    Raises:
        DataError: If the folder holds no photo that can be read, or ``out`` holds something else.
        ValueError: If features are not finite.
    """
    plan = plan_embedding(model, lambda: find_photos(folder), out=out, facts=facts)
    return embed(model, plan, facts=facts, workers=workers, batch_size=batch_size)


def plan_embedding(
    model: LoadedModel,
    find: Callable[[], Photos],
    *,
    out: Path | None = None,
    facts: Facts | None = None,
) -> Plan:
    """What `embed` will do. Collective: call it on every rank; raises as `embed_folder`."""
    key = embedding_key(model, facts)
    return run_on_main(lambda: _plan(find(), out, key), init_accelerator())


def embedding_key(model: LoadedModel, facts: Facts | None) -> str:
    """Hash of all that a row depends on apart from its photo (32 hex digits)."""
    parts = (str(VERSION).encode(), model.fingerprint.encode(), pickle.dumps(facts, protocol=4))
    return hashlib.blake2b(b"\n".join(parts), digest_size=16).hexdigest()


def _plan(photos: Photos, out: Path | None, key: str) -> Plan:
    plan = Plan(photos, [], out, key)
    known = np.zeros(len(photos.names), dtype=bool)
    for path in _files(plan):
        rows = read_rows(path, key=key, names_only=True)
        position = places(photos, rows.names, rows.stamps)
        known[position[position >= 0]] = True
    if out is not None:
        make_folder(_shard_folder(out))
    return plan._replace(pending=np.flatnonzero(~known).tolist())


def _files(plan: Plan) -> list[Path]:
    """All files with features of the plan's photos, oldest first."""
    whole = [plan.out] if plan.out is not None and plan.out.exists() else []
    return [*whole, *plan.shards]


def _shard_folder(out: Path) -> Path:
    return out.with_name(out.name + ".shards")


def embed(
    model: LoadedModel,
    plan: Plan,
    *,
    facts: Facts | None = None,
    workers: int | None = None,
    batch_size: int = 64,
    stop: Callable[[], bool] = lambda: False,
) -> Embeddings:
    """Carry a plan out. Collective: call it on every rank; arguments, result and errors as for `embed_folder`.

    Args:
        model: As for the plan.
        plan: What is to be embedded.
        facts: As for the plan.
        workers: Loader processes per rank.
        batch_size: Photos in one step of one rank.
        stop: Whether to stop after this step; `Stopped` is raised once all is saved.
    """
    accelerator = init_accelerator()
    parts = []
    for rows in _shards(_batches(model, plan, facts, workers, batch_size, stop), plan):
        if plan.out is None:
            parts.append(rows)
        else:
            path = _shard_folder(plan.out) / f"{uuid4().hex}.npz"
            write_rows(path, rows, key=plan.key, model=model.name, left_out={})
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return Embeddings([], np.empty((0, model.num_features), np.float32), {}, {}, {}, model.name)
    held = parts if plan.out is None else (read_rows(path, key=plan.key) for path in _files(plan))
    found = assembled(plan.photos, held, width=model.num_features, model=model.name)
    if plan.out is not None:
        _keep(found, plan)
    return found


def _keep(found: Embeddings, plan: Plan) -> None:
    """Write all rows into one file; the shards are then not needed any more."""
    assert plan.out is not None
    position = {name: i for i, name in enumerate(plan.photos.names)}
    stamps = plan.photos.stamps[[position[name] for name in found.files]]
    rows = Rows(found.files, stamps, found.features, found.facts, found.skipped)
    write_rows(plan.out, rows, key=plan.key, model=found.model, left_out=found.left_out)
    shutil.rmtree(_shard_folder(plan.out), ignore_errors=True)


Step = tuple[PhotoBatch, NDArray[np.float32]]


def _batches(
    model: LoadedModel,
    plan: Plan,
    facts: Facts | None,
    workers: int | None,
    batch_size: int,
    stop: Callable[[], bool],
) -> Iterator[Step | None]:
    """Batches of this rank's pending photos, each with features (M, F); a None at the end if it was stopped."""
    rank, size = dist_info()
    own = plan.pending[rank::size]
    if workers is None:
        workers = free_workers(3 * batch_size * model.preprocess.size**2)
    dataset = PhotoDataset(plan.photos.paths, model.preprocess, facts)
    few = min(workers, -(-len(own) // batch_size))  # no process for which there is no batch
    batches = iter(photo_loader(dataset, own, batch_size=batch_size, workers=few))
    device = init_accelerator().device
    hidden = None if rank == 0 else True  # None: no bar in a log file
    bar = tqdm(desc="embedding", total=len(own), unit="photo", disable=hidden, leave=False)
    with frozen(model.backbone, device), bar:
        try:
            for batch in batches:
                yield batch, _features(model, plan.photos, batch, device)
                bar.update(len(batch.positions) + len(batch.faults))
                if stop():
                    yield None
                    return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(CRASHED) from error
        finally:
            end_workers(batches)


def _features(
    model: LoadedModel, photos: Photos, batch: PhotoBatch, device: torch.device
) -> NDArray[np.float32]:
    if not batch.positions:
        return np.empty((0, model.num_features), dtype=np.float32)
    features: NDArray[np.float32] = (
        forward_features(model.backbone, batch.pixels.to(device)).cpu().numpy()
    )
    finite = np.isfinite(features).all(1)
    if not finite.all():
        name = photos.names[batch.positions[int(np.flatnonzero(~finite)[0])]]
        raise ValueError(
            f"{model.name} gives features that are not finite for {printable(name)}; the weights are broken, or not "
            "those of the network"
        )
    return features


def _shards(steps: Iterator[Step | None], plan: Plan) -> Iterator[Rows]:
    """Batches together, as many as make a shard."""
    held: list[Step] = []
    begun = time.monotonic()
    for step in steps:
        if step is not None:
            held.append(step)
        full = sum(len(batch.positions) for batch, _ in held) >= SHARD
        if held and (step is None or full or time.monotonic() - begun > SHARD_SECONDS):
            yield _rows(held, plan.photos)
            held, begun = [], time.monotonic()
        if step is None:
            raise Stopped(STOPPED)
    if held:
        yield _rows(held, plan.photos)


def _rows(steps: Sequence[Step], photos: Photos) -> Rows:
    positions = [position for batch, _ in steps for position in batch.positions]
    sound = [batch for batch, _ in steps if batch.positions]
    faults = {photos.names[i]: why for batch, _ in steps for i, why in batch.faults.items()}
    return Rows(
        [photos.names[i] for i in positions],
        photos.stamps[positions],
        np.concatenate([features for _, features in steps]),
        {name: np.concatenate([b.facts[name] for b in sound]) for name in sound[0].facts}
        if sound
        else {},
        faults,
    )
