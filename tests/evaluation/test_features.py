import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sslgh.data import EvalDataset, ImageSet, normalize
from sslgh.evaluation import cached_features, extract_features
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.data import Data


class Convolution(nn.Module):
    """A small frozen network that counts its forwards."""

    num_features = 6

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean += 0.3
        self.dropout = nn.Dropout(0.5)
        self.forwards = 0

    def forward(self, x):  # noqa: D102
        self.forwards += 1
        return self.dropout(self.norm(self.conv(x))).amax((2, 3))


def pictures(count, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 2
    return ImageSet(pixels, labels, ("a", "b"), tuple(map(str, range(count))))


def one_by_one(images):
    backbone = Convolution().eval()
    with torch.no_grad():
        rows = [
            backbone(normalize(EvalDataset(images, Preprocessing().at(8))[i][0][None]))
            for i in range(len(images))
        ]
    return torch.cat(rows)


def extract(images, **settings):
    accelerator = Accelerator(cpu=True)
    return extract_features(
        Convolution(),
        EvalDataset(images, Preprocessing().at(8)),
        accelerator=accelerator,
        **settings,
    )


def cached(backbone, images, directory, *, weak=False):
    return cached_features(
        backbone,
        images,
        Data(source="digits"),
        size=8,
        weak=weak,
        directory=directory,
        accelerator=Accelerator(cpu=True),
    )


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_features_stand_in_the_order_of_the_images(batch_size):
    images = pictures(13)
    features = extract(images, batch_size=batch_size)
    torch.testing.assert_close(features, one_by_one(images))


def test_the_backbone_is_frozen_while_it_is_read_and_then_as_before():
    backbone = Convolution()
    backbone.norm.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract_features(
        backbone, EvalDataset(pictures(9), Preprocessing().at(8)), accelerator=Accelerator(cpu=True)
    )
    assert backbone.training
    assert backbone.dropout.training
    assert not backbone.norm.training
    assert all(p.requires_grad for p in backbone.parameters())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def on_processes(count, batch_size):
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # What a launcher sets; the process group itself is already there.
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launcher |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    try:
        assert Accelerator(cpu=True).num_processes == world
        return extract(pictures(count), batch_size=batch_size).numpy()
    finally:
        for name in launcher:
            del os.environ[name]


@pytest.mark.parametrize(("count", "batch_size"), [(13, 3), (12, 3), (1, 4), (7, 3)])
def test_features_do_not_depend_on_the_number_of_processes(two_processes, count, batch_size):
    expected = one_by_one(pictures(count)).numpy()
    answers = two_processes(on_processes, count, batch_size)
    assert len(answers) == 2
    for features in answers:
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_a_second_call_reads_the_cache(tmp_path):
    backbone, images = Convolution(), pictures(9)
    first = cached(backbone, images, tmp_path)
    forwards = backbone.forwards
    assert torch.equal(cached(backbone, images, tmp_path), first)
    assert backbone.forwards == forwards


def test_other_weights_images_or_views_are_extracted_anew(tmp_path):
    backbone, images = Convolution(), pictures(9)
    first = cached(backbone, images, tmp_path)
    with torch.no_grad():
        backbone.norm.running_mean[0] += 1
    features = [
        cached(backbone, images, tmp_path),
        cached(backbone, images, tmp_path, weak=True),
        cached(backbone, pictures(9, seed=1), tmp_path),
    ]
    assert len(list((tmp_path / "features").iterdir())) == 4
    for other in features:
        assert not torch.equal(other, first)


def test_other_pixels_in_a_file_of_the_same_size_are_extracted_anew(tmp_path):
    path = tmp_path / "x.bmp"
    found = []
    for color in ("red", "blue", "red"):
        Image.new("RGB", (8, 8), color).save(path)
        images = ImageSet((path,), np.zeros(1, dtype=np.int64), ("a",), ("x.bmp",))
        found.append(cached(Convolution(), images, tmp_path))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(list((tmp_path / "features").iterdir())) == 2


@pytest.mark.parametrize("error", [SafetensorError("No space"), OSError(28, "No space")])
def test_a_cache_that_cannot_be_written_is_reported_and_done_without(
    tmp_path, monkeypatch, caplog, error
):
    def save(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise error

    expected = cached(Convolution(), pictures(9), tmp_path / "other")
    monkeypatch.setattr("sslgh.evaluation.features.save_tensors", save)
    assert torch.equal(cached(Convolution(), pictures(9), tmp_path), expected)
    assert list((tmp_path / "features").iterdir()) == []
    assert "features cannot be kept in" in caplog.text
    assert "No space" in caplog.text


def test_a_cache_where_no_folder_can_be_is_done_without(tmp_path, caplog):
    (tmp_path / "features").write_text("no folder")
    assert cached(Convolution(), pictures(9), tmp_path).shape == (9, 6)
    assert "features cannot be kept in" in caplog.text


def test_two_probes_may_write_the_same_features_at_once(tmp_path, monkeypatch, caplog):
    def save(tensors, path, metadata):
        save_file(tensors, path, metadata)
        monkeypatch.setattr("sslgh.evaluation.features.save_tensors", save_file)
        cached(Convolution(), pictures(9), tmp_path)  # the other, from beginning to end

    monkeypatch.setattr("sslgh.evaluation.features.save_tensors", save)
    features = cached(Convolution(), pictures(9), tmp_path)
    (path,) = (tmp_path / "features").iterdir()
    assert torch.equal(load_file(path)["features"], features)
    assert caplog.text == ""


def test_an_architecture_with_the_same_weights_is_another_backbone(tmp_path):
    backbone, images = Convolution(), pictures(9)
    first = cached(backbone, images, tmp_path)
    backbone.conv.stride = (2, 2)
    assert not torch.equal(cached(backbone, images, tmp_path), first)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def rename(path):
    save_file({"other": load_file(path)["features"]}, path)


@pytest.mark.parametrize("damage", [cut, flip, empty, rename])
def test_a_damaged_cache_is_extracted_again_and_reported(tmp_path, caplog, damage):
    backbone, images = Convolution(), pictures(9)
    first = cached(backbone, images, tmp_path)
    (path,) = (tmp_path / "features").iterdir()
    damage(path)
    assert torch.equal(cached(backbone, images, tmp_path), first)
    assert "is damaged" in caplog.text
    assert torch.equal(load_file(path)["features"], first)


def test_weak_features_are_those_of_the_weak_views(tmp_path):
    backbone, images = Convolution(), pictures(9)
    expected = extract_features(
        backbone,
        EvalDataset(images, Preprocessing().at(8), weak_seed=0),
        accelerator=Accelerator(cpu=True),
    )
    assert torch.equal(cached(backbone, images, tmp_path, weak=True), expected)


def test_features_that_are_not_finite_are_refused_by_position():
    backbone = Convolution()
    with torch.no_grad():
        backbone.conv.bias += torch.nan
    with pytest.raises(ValueError, match=r"not finite for 5 of 5 images, the first at position 0"):
        extract_features(
            backbone,
            EvalDataset(pictures(5), Preprocessing().at(8)),
            accelerator=Accelerator(cpu=True),
        )


def test_maps_instead_of_features_are_refused():
    with pytest.raises(ValueError, match=r"must give \(5, F\) for 5 images, got \(5, 2, 6, 6\)"):
        extract_features(
            nn.Conv2d(3, 2, 3),
            EvalDataset(pictures(5), Preprocessing().at(8)),
            accelerator=Accelerator(cpu=True),
        )


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        extract(pictures(0))
