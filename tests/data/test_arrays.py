import re
from functools import partial

import numpy as np
import pytest

from sslgh.data import DataError, input_size, load_images, training_set
from sslgh.recipe.data import Data

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0, 2, 2])


def data(root, **more):
    return Data(source="arrays", root=root, **more)


def save(root, split="train", **arrays):
    np.savez(root / f"{split}.npz", **arrays)
    return data(root)


def test_images_labels_and_names_come_back(tmp_path):
    settings = save(
        tmp_path, images=IMAGES, labels=LABELS.astype(np.uint8), class_names=["a", "b", "c"]
    )
    images = training_set(settings)
    assert np.array_equal(images.images, IMAGES)
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == LABELS.tolist()
    assert images.class_names == ("a", "b", "c")
    assert images.names == tuple("012345")
    assert input_size(settings, images) == 8
    assert input_size(data(tmp_path, size=12), images) == 12
    assert load_images(settings, "test") is None


def test_labels_and_names_are_optional(tmp_path):
    assert training_set(save(tmp_path, images=IMAGES)).labels is None
    assert training_set(save(tmp_path, images=IMAGES, labels=LABELS)).class_names == ("0", "1", "2")


def test_the_long_tail_is_cut_and_names_remember_the_position(tmp_path):
    save(tmp_path, images=IMAGES, labels=np.array([0, 0, 0, 1, 1, 1]))
    settings = data(tmp_path, long_tail={"imbalance": 3, "select": "first"})
    images = training_set(settings)
    assert images.names == ("0", "1", "2", "3")
    assert images.class_counts.tolist() == [3, 1]
    assert len(load_images(settings, "train")) == 6


def test_the_test_set_has_the_classes_of_the_training_set(tmp_path):
    settings = save(tmp_path, images=IMAGES, labels=LABELS, class_names=["a", "b", "c"])
    save(tmp_path, "test", images=IMAGES[:2], labels=[1, 0])
    assert load_images(settings, "test").class_names == ("a", "b", "c")
    save(tmp_path, images=IMAGES)
    assert load_images(settings, "test").class_names == ("0", "1")


def test_a_test_label_without_a_class_is_an_error(tmp_path):
    settings = save(tmp_path, images=IMAGES, labels=LABELS)
    save(tmp_path, "test", images=IMAGES[:2], labels=[1, 3])
    with pytest.raises(DataError, match=r"test\.npz: label 3 has no class, .*train\.npz knows 3"):
        load_images(settings, "test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, r"images must be uint8 \(N, H, W, 3\), got nothing"),
        ({"images": IMAGES / 255}, r"got float64 \(6, 8, 8, 3\)"),
        ({"images": IMAGES[..., 0]}, r"got uint8 \(6, 8, 8\)"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"got uint8 \(6, 3, 8, 8\)"),
        ({"images": IMAGES[:0]}, "images are empty"),
        ({"images": IMAGES, "labels": LABELS[:4]}, "6 images need as many labels, got 4"),
        (
            {"images": IMAGES, "labels": LABELS * 1.0},
            r"labels must be integers \(N,\), got float64",
        ),
        ({"images": IMAGES, "labels": np.eye(6, dtype=int)}, r"got int64 \(6, 6\)"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels must count from 0"),
        ({"images": IMAGES, "labels": LABELS, "class_names": ["a", "b"]}, "label 2 has no class"),
        (
            {"images": IMAGES, "labels": LABELS, "class_names": [1, 2, 3]},
            "class_names must be text",
        ),
        ({"images": np.array([None, "x"], dtype=object)}, "images cannot be read"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        training_set(save(tmp_path, **arrays))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    for content in (b"", b"hello", b"PK\x03\x04 broken"):
        (tmp_path / "train.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"train\.npz: images cannot be read"):
            training_set(data(tmp_path))
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "x.npy").rename(tmp_path / "train.npz")
    with pytest.raises(DataError, match=r"train\.npz: images cannot be read"):
        training_set(data(tmp_path))


def test_a_stray_label_is_refused_before_it_takes_all_memory(tmp_path):
    message = "train.npz holds label {}, but labels count classes from 0 and end below 1000000"
    for stray in (1_000_000, 2**63):
        labels = np.array([0, 1, stray, 0, 1, 1], dtype=np.uint64)
        with pytest.raises(DataError, match=re.escape(message.format(stray))):
            training_set(save(tmp_path, images=IMAGES, labels=labels))


# What is raised where a damaged file is read: zlib.error, NotImplementedError, RuntimeError, TokenError.
DAMAGED = {
    "stream": (np.savez_compressed, partial(re.sub, rb"(?s)(\.npy.{20}).", b"\\1\xff", count=1)),
    "method": (np.savez, partial(re.sub, rb"(?s)(PK\x01\x02.{6}).", b"\\1\x63")),
    "encrypted": (np.savez, partial(re.sub, rb"(?s)(PK\x01\x02.{4}).", b"\\1\x01")),
    "head": (np.savez, partial(re.sub, rb"\), }", b"),  ")),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, kind):
    save, damage = DAMAGED[kind]
    save(tmp_path / "train.npz", images=IMAGES.repeat(20, axis=0))  # the head is read by itself
    content = (tmp_path / "train.npz").read_bytes()
    damaged = damage(string=content)
    assert damaged != content
    (tmp_path / "train.npz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"train\.npz: images cannot be read \(.*write it with"):
        training_set(data(tmp_path))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.npz does not exist; write it with numpy\.savez"):
        training_set(data(tmp_path))
    with pytest.raises(DataError, match=r"data\.root .*gone is not a folder"):
        training_set(data(tmp_path / "gone"))


def test_images_that_are_not_square_need_a_size(tmp_path):
    settings = save(tmp_path, images=IMAGES[:, :6])
    with pytest.raises(DataError, match=r"8x6 pixels are not square; set data\.size"):
        input_size(settings, training_set(settings))
