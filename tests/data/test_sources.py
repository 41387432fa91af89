import pickle
import urllib.error
import urllib.request

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from sslgh.data import DataError, input_size, load_images, training_set
from sslgh.recipe.data import Data


def test_digits_are_split_into_a_balanced_test_set_and_the_rest():
    data = Data(source="digits")
    train, test = load_images(data, "train"), load_images(data, "test")
    assert test.class_counts.tolist() == [70] * 10
    assert sorted(int(name) for name in train.names + test.names) == list(range(1797))
    assert train.class_names == tuple("0123456789")
    assert input_size(data, train) == 16


def test_digits_are_scikit_learns_scans_from_0_to_255():
    scans, labels = load_digits(return_X_y=True)
    images = load_images(Data(source="digits"), "test")
    for image, label, name in zip(images.images, images.labels, images.names, strict=True):
        assert np.abs(image / 255 * 16 - scans[int(name)].reshape(8, 8, 1)).max() <= 16 / 255 / 2
        assert label == labels[int(name)]
    assert images.images.shape == (700, 8, 8, 3)
    assert images.images.max() == 255


def test_the_split_of_digits_depends_on_its_own_seed():
    splits = [
        load_images(Data(source="digits", split_seed=seed, test_per_class=20), "test").names
        for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]
    assert len(splits[0]) == 200


def test_digits_keep_some_images_for_training():
    with pytest.raises(DataError, match=r"data\.test_per_class is 174, .* smallest .* holds 174"):
        training_set(Data(source="digits", test_per_class=174))


def test_digits_take_the_long_tail():
    settings = Data(source="digits", long_tail={"imbalance": 10, "max_per_class": 100})
    assert training_set(settings).class_counts.tolist() == [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]


def test_a_subset_is_chosen_after_the_long_tail_in_the_order_of_its_file(tmp_path):
    (tmp_path / "subset").write_text("5\n\n0\n402\n")
    cut = {"source": "digits", "long_tail": {"imbalance": 10, "max_per_class": 100}}
    whole, chosen = training_set(Data(**cut)), training_set(Data(**cut, subset=tmp_path / "subset"))
    assert chosen.names == tuple(whole.names[i] for i in (5, 0, 402))
    assert chosen.labels.tolist() == [0, 0, 9]
    assert chosen.class_names == whole.class_names
    assert load_images(Data(**cut, subset=tmp_path / "subset"), "test").names == (
        load_images(Data(**cut), "test").names
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0\n403\n", r"holds '403', but each line must be a position in 0\.\.402"),
        ("0\n-1\n", r"holds '-1', but"),
        ("a.png\n", r"holds 'a\.png', but"),
        ("\n", "is empty"),
        ("3\n4\n3\n", "names an image twice"),
        (None, r"cannot be read \(.*No such file"),
    ],
)
def test_a_subset_that_is_no_list_of_positions_is_a_data_error(tmp_path, text, sentence):
    file = tmp_path / "subset"
    if text is not None:
        file.write_text(text)
    cut = {"imbalance": 10, "max_per_class": 100}
    with pytest.raises(DataError, match=rf"data\.subset .*{sentence}"):
        training_set(Data(source="digits", long_tail=cut, subset=file))


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """A small CIFAR on disk in the format of the published archives."""
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[request.param]
    folder = tmp_path / source.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}
    for split in ("train_list", "test_list"):
        files = [name for name, _ in getattr(source, split)]
        monkeypatch.setattr(source, split, [(name, None) for name in files])
        written[split] = []
        for name in files:
            pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            labels = rng.integers(0, 10, 4).tolist()
            key = "labels" if request.param == "cifar10" else "fine_labels"
            (folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
            written[split].append((pixels.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1), labels))
    classes = [f"class-{c}" for c in range(10)]
    meta = {"label_names": classes, "fine_label_names": classes}
    monkeypatch.setattr(source, "meta", source.meta | {"md5": None})
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))
    return Data(source=request.param, root=tmp_path), written


def test_cifar_is_read_by_torchvision(cifar):
    data, written = cifar
    for split in ("train", "test"):
        images = load_images(data, split)
        assert np.array_equal(
            images.images, np.concatenate([p for p, _ in written[f"{split}_list"]])
        )
        assert images.labels.tolist() == [
            y for _, labels in written[f"{split}_list"] for y in labels
        ]
        assert images.class_names[3] == "class-3"
    assert input_size(data, images) == 32


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_a_missing_cifar_names_root_and_download(tmp_path, source):
    with pytest.raises(DataError) as error:
        training_set(Data(source=source, root=tmp_path))
    message = str(error.value)
    assert message.startswith(f"{source} is not complete under data.root {tmp_path}")
    assert "set data.download=true" in message


def test_a_failing_download_is_a_data_error(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError, match=r"the download failed .*no network.*; fetch https://"):
        training_set(Data(source="cifar10", root=tmp_path, download=True))
