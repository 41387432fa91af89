import logging
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sslgh.data import (
    DataError,
    ImageSet,
    ResumableBatchSampler,
    SupervisedDataset,
    augment_views,
    class_sampling,
    end_workers,
    labeled_loader,
    normalize,
    num_workers,
    view_loader,
)
from sslgh.data import loader as loader_module
from sslgh.data.augment import NUM_PARAMS
from sslgh.data.datasets import PretrainDataset
from sslgh.recipe.data import Data

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
IMAGES = ImageSet(PIXELS, None, (), tuple(str(i) for i in range(20)))


@pytest.fixture
def files(tmp_path):
    paths = tuple(tmp_path / f"{i:02}.png" for i in range(20))
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return ImageSet(paths, None, (), tuple(path.name for path in paths))


def data(workers=None, local_crops=0):
    return Data(source="arrays", workers=workers, augment={"local_crops": local_crops})


def batches(images, workers, local_crops=0, **order):
    order = ResumableBatchSampler(20, 6, seed=3, epochs=2, **order)
    return list(view_loader(images, data(workers, local_crops), size=8, seed=3, order=order))


@pytest.mark.parametrize("local_crops", [0, 2])
def test_batches_hold_crops_draws_indices_and_nothing_broken_in_the_given_order(local_crops):
    order = ResumableBatchSampler(20, 6, seed=3, epochs=2)
    views = PretrainDataset(IMAGES, data(local_crops=local_crops).augment, size=8, seed=3)
    given = batches(IMAGES, 0, local_crops)
    assert len(given) == len(order) == 8
    for (*parts, index, broken), keys in zip(given, order, strict=True):
        assert index.tolist() == [key.index for key in keys]
        assert broken.tolist() == [-1] * len(keys)
        assert len(parts) == 4
        for number, part in enumerate(parts):
            assert torch.equal(part, torch.stack([views[key][number] for key in keys]))


@pytest.mark.parametrize("local_crops", [0, 2])
def test_workers_processes_and_resuming_do_not_change_a_view(files, local_crops):
    alone = batches(IMAGES, 0, local_crops)
    with_workers = batches(files, 2, local_crops)
    resumed = batches(files, 1, local_crops, start=(1, 1))
    shares = [batches(IMAGES, 0, local_crops, rank=rank, world_size=2) for rank in range(2)]
    gathered = [
        [torch.cat(pair) for pair in zip(a, b, strict=True)] for a, b in zip(*shares, strict=True)
    ]
    for other, expected in ((with_workers, alone), (resumed, alone[5:]), (gathered, alone)):
        assert len(other) == len(expected) > 0
        for mine, theirs in zip(other, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def test_loading_leaves_the_global_generator_alone(files):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches(files, 1)
    batches(IMAGES, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_render(files):
    for local_crops in (0, 3):
        augment = data(local_crops=local_crops).augment
        crops, random_params, small, small_draws, _, _ = batches(files, 0, local_crops)[0]
        assert small.shape == (6, local_crops, 3, 4, 4)
        views = augment_views(crops, random_params, augment)
        assert [tuple(view.shape) for view in views] == [(6, 3, 8, 8)] * 2
        local = augment_views(small, small_draws, augment, full_size=8)
        assert [tuple(view.shape) for view in local] == [(6, 3, 4, 4)] * local_crops


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_all_broken_are_one_sentence_from_workers_too(files, workers):
    for path in files.images:
        path.write_bytes(b"broken")
    order = ResumableBatchSampler(20, 6, seed=3, epochs=2)
    iterator = iter(view_loader(files, data(workers), size=8, seed=3, order=order))
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError) as error:
        list(iterator)
    end_workers(iterator)
    assert set(multiprocessing.active_children()) <= before
    assert len(before) >= workers
    said = str(error.value)
    assert said.startswith("100 images drawn at random cannot be read, so")
    assert said.endswith("(not a known image format); repair it or take it out of the data)")
    assert "\n" not in said


def test_workers_leave_signals_to_the_run(files):
    order = ResumableBatchSampler(20, 6, seed=3, epochs=2)
    before = set(multiprocessing.active_children())
    iterator = iter(view_loader(files, data(1), size=8, seed=3, order=order))
    next(iterator)  # the worker is past its set-up
    (worker,) = set(multiprocessing.active_children()) - before
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(iterator)) == len(order) - 1


LABELS = np.repeat([0, 1, 2], [14, 5, 1])


def labeled(images, workers, contrast=True, **settings):
    images = ImageSet(images.images, LABELS, ("a", "b", "c"), images.names)
    epoch_indices = class_sampling(LABELS, "class-balanced", seed=3, epochs=2)
    order = ResumableBatchSampler(20, 6, seed=3, epochs=2, epoch_indices=epoch_indices, **settings)
    options = {"size": 8, "seed": 3, "policy": "autoaugment", "contrast": contrast}
    loader = labeled_loader(images, data(workers), order=order, **options)
    return list(loader), order, SupervisedDataset(images, data().augment, **options)


def test_labeled_batches_hold_the_items_in_the_given_order():
    given, order, views = labeled(IMAGES, 0)
    assert len(given) == len(order) == 8
    for (view, crops, random_params, label, index, broken), keys in zip(given, order, strict=True):
        assert index.tolist() == [key.index for key in keys]
        assert broken.tolist() == [-1] * len(keys)
        assert label.tolist() == LABELS[index].tolist()
        for number, part in enumerate((view, crops, random_params)):
            assert torch.equal(part, torch.stack([views[key][number] for key in keys]))
    assert len({given[i][0].numpy().tobytes() for i in range(8)}) == 8
    only = torch.cat([batch[0][batch[3] == 2] for batch in given])  # 13 showings of one image
    assert len(torch.unique(only.flatten(1), dim=0)) == len(only) >= 10


def test_workers_processes_and_resuming_do_not_change_a_labeled_batch(files):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone = labeled(IMAGES, 0)[0]
    shares = [labeled(IMAGES, 0, rank=rank, world_size=2)[0] for rank in range(2)]
    gathered = [
        [torch.cat(pair) for pair in zip(a, b, strict=True)] for a, b in zip(*shares, strict=True)
    ]
    resumed = labeled(files, 1, start=(1, 1))[0]
    for other, expected in (
        (labeled(files, 2)[0], alone),
        (resumed, alone[5:]),
        (gathered, alone),
    ):
        assert len(other) == len(expected) > 0
        for mine, theirs in zip(other, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_labeled_batches_without_contrast_hold_empty_crops(files, workers):
    view, crops, random_params, label, *_ = labeled(files, workers, contrast=False)[0][0]
    assert (crops.shape, random_params.shape) == ((6, 0, 3, 8, 8), (6, 0, NUM_PARAMS))
    assert normalize(view).shape == (6, 3, 8, 8)
    assert label.dtype == torch.int64


def test_labeled_batches_render():
    _, crops, random_params, *_ = labeled(IMAGES, 0)[0][0]
    assert [tuple(v.shape) for v in augment_views(crops, random_params, data().augment)] == [
        (6, 3, 8, 8)
    ] * 2


LEFT_BEHIND = """
import sys
from pathlib import Path
from sslgh.data import ResumableBatchSampler, ImageSet, view_loader
from sslgh.recipe.data import Data

paths = tuple(sorted(Path(sys.argv[1]).iterdir()))
images = ImageSet(paths, None, (), tuple(path.name for path in paths))
order = ResumableBatchSampler(20, 6, seed=3, epochs=2)
kept = iter(view_loader(images, Data(source="arrays", workers=2), size=8, seed=3, order=order))
next(kept)
"""


def test_a_program_ends_though_an_iterator_outlives_its_loop(files, tmp_path):
    command = [sys.executable, "-c", LEFT_BEHIND, str(tmp_path)]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def workers_of(images, order=None, size=8, local_crops=0):
    order = order or ResumableBatchSampler(20, 6, seed=0, epochs=1)
    settings = data(local_crops=local_crops)
    return view_loader(images, settings, size=size, seed=0, order=order).num_workers


def test_images_in_memory_need_no_workers(files, monkeypatch):
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert workers_of(IMAGES) == 0
    assert workers_of(files) == 8


def test_files_get_one_worker_a_core_shared_between_the_processes(files, monkeypatch):
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert workers_of(files) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_of(files) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "12")
    assert workers_of(files) == 1


def test_workers_are_as_many_as_shared_memory_holds(files, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setattr(loader_module, "SHARED_MEMORY", tmp_path)
    usage = loader_module.shutil.disk_usage(tmp_path)._replace(free=64 * 2**20)
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: usage)
    # 64 images x 2 views x 3 x 224 x 224 bytes, two batches ahead: 38.5 MB a worker
    order = ResumableBatchSampler(200, 64, seed=0, epochs=1)
    with caplog.at_level(logging.WARNING):
        assert workers_of(files, order, size=224) == 0
        assert workers_of(files, order, size=112) == 3
        # 8 of 48 x 48 to the 2 of 112 x 112: 16.6 MB instead of 9.6
        assert workers_of(files, order, size=112, local_crops=8) == 2
    assert "room for the batches of 3 loader workers instead of 6" in caplog.text


def test_labeled_batches_need_less_memory_without_contrast(files, monkeypatch, tmp_path):
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setattr(loader_module, "SHARED_MEMORY", tmp_path)
    usage = loader_module.shutil.disk_usage(tmp_path)._replace(free=64 * 2**20)
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: usage)
    order = ResumableBatchSampler(200, 64, seed=0, epochs=1)
    images = ImageSet(files.images, LABELS, ("a", "b", "c"), files.names)
    workers = [
        labeled_loader(images, data(), size=112, seed=0, order=order, contrast=contrast).num_workers
        for contrast in (False, True)
    ]
    # 64 images x (1 or 3) views x 3 x 112 x 112 bytes, two batches ahead: 4.8 or 14.5 MB a worker
    assert workers == [6, 2]


def test_one_function_counts_the_workers_of_training_evaluation_and_doctor(monkeypatch, tmp_path):
    cores = 6
    monkeypatch.setattr(
        loader_module.os, "sched_getaffinity", lambda _: range(cores), raising=False
    )
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(loader_module, "SHARED_MEMORY", tmp_path)
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: usage)
    assert num_workers(data(3), in_memory=True) == 3
    assert num_workers(data(), in_memory=True) == 0
    assert num_workers(data(), in_memory=False) == cores
    assert num_workers(data(), in_memory=False, batch_bytes=10**5) == 2
    assert num_workers(data(3), in_memory=False, batch_bytes=10**9) == 3
    cores = 64
    assert num_workers(data(), in_memory=False) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert num_workers(data(), in_memory=False) == 4


def test_workers_that_are_no_forks_give_the_same_batches(files):
    """Windows and macOS start workers anew: what they are given must pickle and say all."""
    order = ResumableBatchSampler(20, 6, seed=3, epochs=1)
    options = {"size": 8, "seed": 3, "policy": "randaugment", "contrast": True}
    images = ImageSet(files.images, LABELS, ("a", "b", "c"), files.names)
    loader = labeled_loader(images, data(1), order=order, **options)
    forked = list(loader)
    loader.multiprocessing_context = "spawn"
    started_anew = list(loader)
    assert len(forked) == len(started_anew) == 4
    for one, other in zip(forked, started_anew, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
