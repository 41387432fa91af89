import json
import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from sslgh.data import DataError, ImageSet, PretrainBatch, ResumableBatchSampler, view_loader
from sslgh.engine.broken_images import BrokenImages
from sslgh.engine.pretraining import pretrain
from sslgh.recipe import make_recipe
from sslgh.recipe.data import Data

N = 64
BROKEN = [f"{i:02}.png" for i in range(0, N, 8)]


def draw(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


@pytest.fixture
def folder(tmp_path):
    """64 photos of which every 8th is cut off, and a run directory."""
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    for i in range(N):
        draw(tmp_path / "data" / f"{i:02}.png", i)
    for name in BROKEN:
        path = tmp_path / "data" / name
        path.write_bytes(path.read_bytes()[:60])
    return tmp_path


def listed(folder):
    paths = tuple(sorted((folder / "data").iterdir(), key=lambda path: path.name))
    return ImageSet(paths, None, (), tuple(path.name for path in paths))


def opened(folder, *, images=None, share=0.2, workers=0, epochs=1, rank=0, world_size=1):
    images = images or listed(folder)
    order = ResumableBatchSampler(
        len(images), 16, seed=3, epochs=epochs, rank=rank, world_size=world_size
    )
    loader = view_loader(
        images, Data(source="folder", workers=workers), size=8, seed=3, order=order
    )
    directory = folder / "run"
    device = torch.device("cpu")
    return BrokenImages(iter(loader), images, share=share, directory=directory, device=device)


def passed(batches):
    """All batches, and what was said of broken images."""
    accelerator, given, said = Accelerator(cpu=True), [], []
    for batch in batches:
        given.append(batch)
        said.append(batches.sync(accelerator))
    return given, [sentence for sentence in said if sentence is not None]


def report(folder):
    return json.loads((folder / "run" / "quarantine.json").read_text())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_report_names_exactly_the_broken_files_with_their_reasons(folder, workers):
    _, said = passed(opened(folder, workers=workers))
    found = report(folder)
    assert (found["images"], found["broken"]) == (N, 8)
    assert list(found["files"]) == BROKEN
    assert all("truncated" in why or "cut" in why for why in found["files"].values())
    assert said[-1].startswith("8 of 64 images cannot be read so far")
    assert "quarantine.json names them; the first: " in said[-1]


def test_batches_are_those_of_the_loader(folder):
    given, _ = passed(opened(folder))
    loaded = list(opened(folder).batches)
    for mine, theirs in zip(given, loaded, strict=True):
        assert type(mine) is type(theirs) is PretrainBatch
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def test_what_is_met_again_is_not_news(folder):
    batches = opened(folder, epochs=3)
    accelerator = Accelerator(cpu=True)
    said = [batches.sync(accelerator) for _ in batches]
    assert not any(said[4:])
    assert not batches.should_report(logged=True)


def test_sound_files_leave_no_report(folder):
    images = listed(folder)
    images = images.subset([i for i, name in enumerate(images.names) if name not in BROKEN])
    assert passed(opened(folder, images=images))[1] == []
    assert list((folder / "run").iterdir()) == []


def test_more_than_the_share_stops_and_says_what_to_do(folder):
    with pytest.raises(DataError) as error:
        passed(opened(folder, share=0.08))
    said = str(error.value)
    assert "7 of 64 images cannot be read (10.9%) and data.broken_share allows 8.0%" in said
    assert str(folder / "run" / "quarantine.json") in said
    assert f"the first of the last ones: {folder / 'data'}" in said
    assert report(folder)["broken"] == 7


def test_exactly_the_share_is_passed_over(folder):
    assert len(passed(opened(folder, share=8 / 64))[0]) == 4


def test_a_share_that_is_no_binary_fraction_is_passed_over_too(tmp_path):
    images = ImageSet(
        tuple(tmp_path / f"{i}.png" for i in range(100)), None, (), tuple(map(str, range(100)))
    )
    batches = BrokenImages(iter([]), images, share=0.29, directory=None, device=torch.device("cpu"))
    assert batches._report(list(range(29)), None).startswith("29 of 100 images")
    with pytest.raises(DataError, match="30 of 100 images cannot be read"):
        batches._report([29], None)


def test_a_broken_file_counts_as_often_as_a_list_names_it(folder):
    images = listed(folder).subset([0] * 32 + list(range(1, 8)) * 4)
    with pytest.raises(DataError, match=r"32 of 60 images cannot be read \(53\.3%\)"):
        passed(opened(folder, images=images, share=0.2))


def test_a_share_of_0_stops_at_the_first_and_again_when_the_run_goes_on(folder):
    for _ in range(2):
        batches = opened(folder, share=0)
        with pytest.raises(DataError, match=r"share allows 0\.0%"):
            passed(batches)
    assert set(report(folder)["files"]) < set(BROKEN)


def test_a_file_that_vanishes_in_mid_run_is_met_in_the_next_epoch(folder):
    batches, accelerator = opened(folder, epochs=2), Accelerator(cpu=True)
    for _ in range(4):
        next(batches)
        batches.sync(accelerator)
    (folder / "data" / "11.png").unlink()
    said = passed(batches)[1]
    assert len(said) == 1
    assert "9 of 64 images cannot be read so far (1 met just now)" in said[0]
    assert list(report(folder)["files"]) == sorted([*BROKEN, "11.png"])


def test_a_resumed_run_keeps_what_was_found_and_notices_repairs(folder):
    passed(opened(folder))
    draw(folder / "data" / "08.png", 8)
    batches = opened(folder)
    assert report(folder)["files"]["08.png"] == "was broken, reads now"
    assert report(folder)["broken"] == 7
    next(batches)
    batches.sync(Accelerator(cpu=True))
    assert list(report(folder)["files"]) == BROKEN


def test_files_that_read_again_do_not_count(folder):
    batches, accelerator = opened(folder, share=0.01), Accelerator(cpu=True)
    next(batches)
    for name in BROKEN:
        draw(folder / "data" / name, 1)
    said = batches.sync(accelerator)
    assert said.startswith("0 of 64 images cannot be read so far")
    assert said.endswith("was broken, reads now")


def test_a_report_that_cannot_be_written_does_not_stop_the_run(folder):
    (folder / "run").rmdir()
    said = passed(opened(folder))[1]
    assert "quarantine.json cannot be written (No such file or directory)" in said[0]


def test_a_damaged_report_is_one_sentence(folder):
    (folder / "run" / "quarantine.json").write_text('{"images": 64')
    with pytest.raises(DataError, match=r"quarantine\.json is damaged; move it elsewhere"):
        opened(folder)


def test_any_name_can_be_reported(folder):
    names = [os.fsdecode(b"\xff\xfe.png"), "two\nlines.png", "\u00e4.png"]
    for name in names:
        (folder / "data" / name).write_bytes(b"")
    passed(opened(folder))
    assert (folder / "run" / "quarantine.json").read_bytes().isascii()
    assert set(report(folder)["files"]) == {*names, *BROKEN}
    assert passed(opened(folder))[1][-1].isprintable()


def test_the_end_ends_the_workers(folder):
    before = set(multiprocessing.active_children())
    batches = opened(folder, workers=2, epochs=2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_one_process_stops_at_the_next_check_without_images(folder):
    batches = opened(folder, epochs=2)
    next(batches)
    for path in (folder / "data").iterdir():
        path.unlink()
    next(batches)
    assert batches.should_report(logged=False)
    with pytest.raises(DataError, match=r"100 images drawn .* cannot be read.*quarantine.json"):
        batches.sync(Accelerator(cpu=True))


@contextmanager
def launched():
    """What a launcher sets; the process group itself is already there."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    launcher = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
    }
    launcher |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    try:
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == world_size
        yield rank, world_size
    finally:
        for name in launcher:
            del os.environ[name]


def on_processes(folder, share):
    with launched() as (rank, world_size):
        try:
            batches = opened(Path(folder), share=share, rank=rank, world_size=world_size)
            given, said = passed(batches)
        except DataError as error:
            return str(error)
    return [batch.index.tolist() for batch in given], said


def test_two_processes_agree_with_one(two_processes, folder):
    given, _ = passed(opened(folder))
    alone = (folder / "run" / "quarantine.json").read_bytes()
    (folder / "run" / "quarantine.json").unlink()
    (first, said), (second, too) = two_processes(on_processes, str(folder), 0.2)
    shown = [a + b for a, b in zip(first, second, strict=True)]
    assert shown == [batch.index.tolist() for batch in given]
    assert said == too
    assert (folder / "run" / "quarantine.json").read_bytes() == alone


def test_two_processes_stop_together(two_processes, folder):
    first, second = two_processes(on_processes, str(folder), 0.08)
    assert "7 of 64 images cannot be read" in first
    assert first == second


def without_images(folder):
    """Process 1 never finds an image."""
    with launched() as (rank, world_size):
        images = listed(Path(folder))
        if rank == 1:
            gone = tuple(path.with_name("gone") for path in images.images)
            images = ImageSet(gone, None, (), images.names)
        try:
            passed(opened(Path(folder), images=images, rank=rank, world_size=world_size))
        except DataError as error:
            return str(error)
    return None


def test_a_process_without_images_stops_all(two_processes, folder):
    first, second = two_processes(without_images, str(folder))
    assert first.startswith("100 images drawn at random cannot be read")
    assert first == second


class Lost:
    """A loader that finds no image any more from the second batch on."""

    def __init__(self):
        self.given = 0

    def __next__(self):
        self.given += 1
        if self.given > 1:
            raise DataError("the disk is gone")
        index = torch.arange(2)
        return PretrainBatch(*[torch.ones(2, 3)] * 4, index, torch.full((2,), -1))


def lost_in_mid_run(folder):
    with launched() as (rank, _):
        images = listed(Path(folder))
        batches = opened(Path(folder)).batches if rank == 0 else Lost()
        device = torch.device("cpu")
        batches = BrokenImages(batches, images, share=0.2, directory=Path(folder), device=device)
        given = [next(batches), next(batches)]
        try:
            batches.sync(Accelerator(cpu=True))
        except DataError as error:
            return batches.should_report(logged=False), len(given[1].index), str(error)
    return None


def test_a_process_that_loses_its_images_reaches_the_next_check_and_stops_all(
    two_processes, folder
):
    first, second = two_processes(lost_in_mid_run, str(folder))
    assert (first[0], second[0]) == (False, True)
    assert second[1] == 2
    assert first[2] == second[2]
    assert first[2].startswith("the disk is gone; ")


def test_a_run_over_broken_files_ends_and_names_them(folder):
    recipe = make_recipe(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "data": {
                "source": "folder",
                "root": str(folder / "data"),
                "size": 8,
                "workers": 0,
                "broken_share": 0.2,
            },
            "model": {"width": 0.125, "projector": {"hidden": 32, "out": 16}},
            "method": {"name": "simclr"},
            "optim": {"warmup_epochs": 1},
            "train": {"epochs": 2, "batch_size": 16, "log_every": 2},
        }
    )
    (folder / "run").rmdir()
    pretrain(recipe, Accelerator(cpu=True))
    assert list(report(folder)["files"]) == BROKEN
    assert (folder / "run" / "backbone.safetensors").is_file()
