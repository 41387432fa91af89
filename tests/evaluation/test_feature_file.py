import re
import zipfile
from functools import partial

import numpy as np
import pytest
import torch

from sslgh.evaluation import load_feature_file

GOOD = {
    "train_features": np.eye(4, 3, dtype=np.float64),
    "train_labels": np.array([0, 1, 1, 0], dtype=np.uint8),
    "test_features": np.ones((2, 3), dtype=np.float16),
    "test_labels": np.array([0, 1]),
}


def test_a_file_comes_back_as_float32_and_int64(tmp_path):
    np.savez(tmp_path / "f.npz", **GOOD)
    train, labels, test, _ = load_feature_file(tmp_path / "f.npz")
    assert torch.equal(train, torch.eye(4, 3))
    assert (train.dtype, labels.dtype, test.dtype) == (torch.float32, torch.int64, torch.float32)
    assert labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_features": np.full((4, 3), np.nan)}, "4 of 4 rows of train_features hold nan"),
        ({"test_features": np.full((2, 3), 1e300)}, "2 of 2 rows of test_features hold nan or inf"),
        ({"train_labels": np.zeros(3, dtype=int)}, r"must be \(N, F\) and \(N,\), got \(4, 3\)"),
        ({"test_features": np.ones((2, 5))}, "train_features are 3 wide, test_features 5"),
        ({"test_labels": np.array([0.0, 1.0])}, "must be integers from 0, got float64"),
        ({"test_labels": np.array([0, -1])}, "test_labels must be integers from 0"),
        ({"test_labels": np.array([0, 1], "m8[s]")}, r"integers from 0, got timedelta64\[s\]"),
        ({"train_features": np.ones((4, 3), dtype=int)}, "must be floats, got int64"),
        ({"train_features": np.array([{}] * 4)}, "without pickles"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, message):
    np.savez(tmp_path / "f.npz", **(GOOD | changes))
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match=message),
    ):
        load_feature_file(tmp_path / "f.npz")


def test_a_missing_array_is_named(tmp_path):
    np.savez(tmp_path / "f.npz", train_features=GOOD["train_features"])
    with pytest.raises(ValueError, match="array train_labels is missing"):
        load_feature_file(tmp_path / "f.npz")


def test_files_that_are_no_npz_are_refused(tmp_path):
    np.save(tmp_path / "f.npy", np.zeros(3))
    (tmp_path / "f.txt").write_text("hello")
    with pytest.raises(ValueError, match="does not exist"):
        load_feature_file(tmp_path / "nothing.npz")
    for name in ("f.npy", "f.txt"):
        with pytest.raises(ValueError, match="cannot be read as an"):
            load_feature_file(tmp_path / name)


# What is raised where a damaged file is read: zlib.error, NotImplementedError, RuntimeError.
DAMAGED = {
    "stream": (np.savez_compressed, partial(re.sub, rb"(?s)(\.npy.{20}).", b"\\1\xff", count=1)),
    "method": (np.savez, partial(re.sub, rb"(?s)(PK\x01\x02.{6}).", b"\\1\x63")),
    "encrypted": (np.savez, partial(re.sub, rb"(?s)(PK\x01\x02.{4}).", b"\\1\x01")),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, kind):
    save, damage = DAMAGED[kind]
    save(tmp_path / "f.npz", **GOOD)
    content = (tmp_path / "f.npz").read_bytes()
    damaged = damage(string=content)
    assert damaged != content
    (tmp_path / "f.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"f\.npz cannot be read as an \.npz file"):
        load_feature_file(tmp_path / "f.npz")


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, **{name: value for name, value in GOOD.items() if name != "train_features"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_features", b"hello")
    with pytest.raises(ValueError, match=r"train_labels must be \(N, F\) and \(N,\), got \(\)"):
        load_feature_file(path)


def test_a_stray_label_is_refused_before_it_takes_all_memory(tmp_path):
    arrays = {f"{split}_features": np.zeros((3, 2)) for split in ("train", "test")}
    labels = {f"{split}_labels": np.array([0, 1, 2_000_000_000]) for split in ("train", "test")}
    np.savez(tmp_path / "f.npz", **arrays, **labels)
    with pytest.raises(
        ValueError,
        match=r"array train_labels of .* holds label 2000000000, but labels count classes",
    ):
        load_feature_file(tmp_path / "f.npz")
