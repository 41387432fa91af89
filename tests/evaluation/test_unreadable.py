import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from sslgh.data import DataError, load_images
from sslgh.evaluation import probe_backbone
from sslgh.evaluation.features import unreadable_names, without
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Recipe


@pytest.fixture
def tree(tmp_path):
    """Two classes of 20 photos to train on and 5 to test on, and a run directory."""
    (tmp_path / "run").mkdir()
    for split, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([label, i]).integers(0, 128, (16, 16, 3))
                Image.fromarray((pixels + 120 * label).astype(np.uint8)).save(
                    folder / f"{i:02}.png"
                )
    return tmp_path


def spoil(tree, split, *names):
    for name in names:
        (tree / "data" / split / name).write_bytes(b"broken")


def quarantine(tree, *names):
    files = dict.fromkeys(names, "it was broken")
    (tree / "run" / "quarantine.json").write_text(json.dumps({"images": 40, "files": files}))


def data(tree):
    return {"source": "folder", "root": str(tree / "data"), "size": 16, "workers": 0}


def probed(tree):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    probes = [{"protocol": "knn", "neighbors": 3}, {"protocol": "longtail", "objectives": ["ce"]}]
    settings = {"name": "r", "data": data(tree), "method": {"name": "simclr"}, "probe": probes}
    return probe_backbone(
        backbone,
        Recipe.model_validate(settings),
        directory=tree / "run",
        accelerator=Accelerator(cpu=True),
    )


def test_training_images_that_the_run_found_broken_are_left_out_and_reported_once(tree, caplog):
    spoil(tree, "train", "cat/03.png", "dog/07.png", "dog/08.png")
    quarantine(tree, "cat/03.png", "dog/07.png", "dog/08.png")
    for result in probed(tree):
        assert result.train_counts == [19, 18]
        assert result.test_counts == [5, 5]
        assert result.group_counts == [20, 20]
    (said,) = caplog.messages
    assert said.startswith("3 training images cannot be read and are left out of the training feat")
    assert "quarantine.json" in said


def test_images_that_read_again_take_part(tree, caplog):
    quarantine(tree, "cat/03.png", "dog/07.png")
    assert [result.train_counts for result in probed(tree)] == [[20, 20]] * 2
    assert caplog.messages == []


def test_a_broken_training_image_that_the_run_did_not_meet_is_an_error(tree):
    spoil(tree, "train", "cat/03.png", "cat/04.png")
    quarantine(tree, "cat/03.png")
    with pytest.raises(DataError, match=r"cat/04\.png cannot be read.*`sslgh scan` lists"):
        probed(tree)


def test_a_broken_test_image_is_an_error_whatever_the_run_found(tree):
    spoil(tree, "test", "cat/03.png")
    quarantine(tree, "cat/03.png")
    with pytest.raises(DataError, match=r"test/cat/03\.png cannot be read.*`sslgh scan` lists"):
        probed(tree)


def test_a_set_without_broken_images_is_the_same_set(tree):
    images = load_images(Data(**data(tree)), "train")
    assert without(images, frozenset({"other.png"})) is images
    assert without(images, frozenset({"cat/00.png"})).names == images.names[1:]


def names_on_processes(folder):
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # What a launcher sets; the process group itself is already there.
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launcher |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    try:
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == world
        images = load_images(Data(**data(Path(folder))), "train")
        return sorted(unreadable_names(images, Path(folder) / "run", accelerator))
    finally:
        for name in launcher:
            del os.environ[name]


def test_all_processes_leave_out_the_same(two_processes, tree):
    spoil(tree, "train", "cat/03.png", "dog/07.png")
    quarantine(tree, "cat/03.png", "dog/07.png", "dog/09.png")
    assert two_processes(names_on_processes, str(tree)) == [["cat/03.png", "dog/07.png"]] * 2
