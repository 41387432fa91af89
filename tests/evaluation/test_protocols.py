import numpy as np
import pytest

from sslgh.data import DataError
from sslgh.evaluation.probe_settings import plan_probe
from sslgh.evaluation.protocols import (
    PROTOCOLS,
    labeled_images,
    training_images,
    training_rows,
    warn_of_few_steps,
)
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Probe

CUT = Data(source="digits", long_tail={"imbalance": 20, "max_per_class": 100})


def write_folder(root, counts):
    from PIL import Image  # noqa: PLC0415 - only these tests need files

    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(root / name / f"{i}.png")


def test_every_protocol_is_found_by_its_name():
    known = {
        "gh-cifar-full",
        "gh-100shot",
        "gh-50shot",
        "balanced",
        "longtail",
        "longtail-v1",
        "knn",
    }
    assert set(PROTOCOLS) == known
    for name, protocol in PROTOCOLS.items():
        assert name in {protocol.name, f"{protocol.name}-v{protocol.version}"}
    assert (PROTOCOLS["longtail"].version, PROTOCOLS["longtail-v1"].version) == (2, 1)


def test_the_paper_s_protocols_have_the_paper_s_settings():
    for name in ("gh-cifar-full", "gh-100shot", "gh-50shot"):
        protocol = PROTOCOLS[name]
        heads = protocol.heads
        assert (heads.epochs, heads.batch_size, heads.weight_decay) == (500, 1000, 5e-6)
        assert (heads.lr, heads.lr_end) == (1e-2, 1e-6)
        assert heads.decay_bias
        assert not heads.standardize
        assert protocol.weak
        assert list(plan_probe(Probe(protocol=name)).heads) == ["ce"]


def test_the_full_protocol_trains_on_the_uncut_split_and_longtail_on_the_cut_one():
    images = labeled_images(CUT)
    assert training_images(PROTOCOLS["gh-cifar-full"], images).class_counts.min() >= 100
    for name in ("longtail", "knn"):
        counts = training_images(PROTOCOLS[name], images).class_counts
        assert (counts.max(), counts.min()) == (100, 5)
    assert images.test.class_counts.tolist() == [70] * 10


def test_the_images_of_pretraining_are_those_of_the_subset(tmp_path):
    (tmp_path / "rows").write_text("7\n300\n2\n")
    images = labeled_images(Data(source="digits", subset=tmp_path / "rows"))
    part = training_images(PROTOCOLS["longtail"], images)
    assert part.fingerprint == images.full_train.subset([7, 300, 2]).fingerprint
    assert images.class_counts.sum() == 3


def test_few_shot_protocols_draw_so_many_of_every_class_and_always_the_same():
    images = labeled_images(CUT)
    shots = training_images(PROTOCOLS["gh-50shot"], images)
    assert shots.class_counts.tolist() == [50] * 10
    again = training_images(PROTOCOLS["gh-50shot"], labeled_images(CUT))
    assert shots.fingerprint == again.fingerprint


def test_shots_are_drawn_from_all_over_the_class():
    rows = training_rows(PROTOCOLS["gh-50shot"], np.repeat([0, 1], 1000), ("a", "b"))
    assert len(set(rows.tolist())) == 100
    assert rows[:50].max() > 900
    assert (rows[50:] >= 1000).all()


def test_a_class_with_too_few_shots_is_named_with_need_and_have():
    labels = np.repeat([0, 1, 2], [300, 99, 120])
    message = "needs 100 training images of every class, but class 'dog' has 99"
    with pytest.raises(DataError, match=message):
        training_rows(PROTOCOLS["gh-100shot"], labels, ("cat", "dog", "eel"))


def test_a_training_split_that_is_long_tailed_itself_is_not_the_balanced_one():
    labels = np.repeat([0, 1], [500, 50])
    with pytest.raises(DataError, match="balanced training split, but its classes hold 50 to 500"):
        training_rows(PROTOCOLS["gh-cifar-full"], labels, ("cat", "dog"))


def test_images_without_labels_cannot_be_probed(tmp_path):
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    with pytest.raises(DataError, match="a probe needs labels, and source arrays"):
        labeled_images(Data(source="arrays", root=tmp_path))


def test_test_images_without_labels_are_no_test_set(tmp_path):
    images, labels = np.zeros((4, 8, 8, 3), dtype=np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    assert labeled_images(Data(source="arrays", root=tmp_path)).test is None
    np.savez(tmp_path / "test.npz", images=images)
    assert labeled_images(Data(source="arrays", root=tmp_path)).test is None
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    assert len(labeled_images(Data(source="arrays", root=tmp_path)).test) == 4


def test_balanced_trains_on_the_images_of_the_paper_s_protocol_and_on_plain_views():
    images = labeled_images(CUT)
    full, balanced = (PROTOCOLS[name] for name in ("gh-cifar-full", "balanced"))
    assert training_images(balanced, images) is training_images(full, images)
    assert full.weak
    assert not balanced.weak
    labels = np.repeat([0, 1], [500, 50])
    with pytest.raises(DataError, match="balanced trains on a balanced training split"):
        training_rows(balanced, labels, ("cat", "dog"))


@pytest.mark.parametrize(("images", "steps"), [(1097, 1000), (4000, 2000), (4001, None)])
def test_the_paper_s_protocols_warn_on_sets_smaller_than_its_own(caplog, images, steps):
    training = PROTOCOLS["gh-cifar-full"].heads
    warn_of_few_steps("gh-cifar-full", training, images)
    if steps is None:
        assert not caplog.text
    else:
        sentence = f"gh-cifar-full takes {steps} steps on these {images} images"
        assert sentence in caplog.text
        assert "protocol balanced trains until converged" in caplog.text


def test_a_test_tree_that_lacks_a_class_keeps_the_numbers_of_the_others(tmp_path):
    write_folder(tmp_path / "train", {"ape": 1, "cat": 2, "dog": 3})
    write_folder(tmp_path / "test", {"cat": 2, "dog": 1})
    data = Data(source="folder", root=tmp_path / "train", test_root=tmp_path / "test")
    assert labeled_images(data).test.class_counts.tolist() == [0, 2, 1]
