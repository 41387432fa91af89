import numpy as np
import pytest

from sslgh.data import DataError, select_long_tail
from sslgh.data.sources import profile
from sslgh.recipe.data import LongTail


def balanced(num_classes, per_class):
    """A label sequence in mixed order, as CIFAR's files have it."""
    return np.random.default_rng(5).permutation(np.repeat(np.arange(num_classes), per_class))


def names(num_classes):
    return [f"class-{c}" for c in range(num_classes)]


def generator_of_ldam(labels, factor, seed, kind="exp"):
    """Literal transcription of IMBALANCECIFAR10 in imbalance_cifar.py of the LDAM repository."""
    np.random.seed(seed)  # noqa: NPY002
    num_classes = len(np.unique(labels))
    img_max = len(labels) / num_classes
    img_num_per_cls = []
    if kind == "exp":
        for cls_idx in range(num_classes):
            num = img_max * (factor ** (cls_idx / (num_classes - 1.0)))
            img_num_per_cls.append(int(num))
    else:
        img_num_per_cls.extend([int(img_max)] * (num_classes // 2))
        img_num_per_cls.extend([int(img_max * factor)] * (num_classes // 2))
    selected = []
    for the_class, the_img_num in zip(np.unique(labels), img_num_per_cls, strict=True):
        idx = np.where(labels == the_class)[0]
        np.random.shuffle(idx)  # noqa: NPY002
        selected.extend(idx[:the_img_num])
    return np.array(selected)


PUBLISHED = [
    (100, 500, 100, 10_847),
    (100, 500, 50, 12_608),
    (100, 500, 10, 19_573),
    (10, 5000, 100, 12_406),
    (10, 5000, 50, 13_996),
    (10, 5000, 10, 20_431),
]


@pytest.mark.parametrize(("num_classes", "per_class", "imbalance", "total"), PUBLISHED)
def test_the_subset_has_the_published_size(num_classes, per_class, imbalance, total):
    labels = balanced(num_classes, per_class)
    kept = select_long_tail(labels, LongTail(imbalance=imbalance), names(num_classes))
    assert len(kept) == len(set(kept.tolist())) == total
    counts = np.bincount(labels[kept])
    assert counts[0] == per_class
    assert counts[-1] == per_class // imbalance


@pytest.mark.parametrize("kind", ["exp", "step"])
@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(("num_classes", "per_class", "imbalance", "total"), PUBLISHED)
def test_the_subset_is_the_one_of_the_published_generator(
    num_classes, per_class, imbalance, total, seed, kind
):
    labels = balanced(num_classes, per_class)
    settings = LongTail(profile=kind, imbalance=imbalance, seed=seed)
    kept = select_long_tail(labels, settings, names(num_classes))
    assert np.array_equal(kept, generator_of_ldam(labels, 1 / imbalance, seed, kind))


def test_first_of_a_subset_in_published_order_is_the_steeper_published_subset():
    labels = balanced(100, 500)
    mild = select_long_tail(labels, LongTail(imbalance=10), names(100))
    for imbalance in (50, 100):
        steep = LongTail(imbalance=imbalance, select="first", max_per_class=500)
        kept = mild[select_long_tail(labels[mild], steep, names(100))]
        published = select_long_tail(labels, LongTail(imbalance=imbalance), names(100))
        assert np.array_equal(kept, published)


def test_first_keeps_file_order():
    labels = np.array([1, 0, 1, 0, 0, 1])
    settings = LongTail(imbalance=3, select="first")
    assert select_long_tail(labels, settings, names(2)).tolist() == [1, 3, 4, 0]


def test_step_gives_the_odd_class_to_the_tail():
    assert profile(100, 5, LongTail(profile="step", imbalance=20)).tolist() == [100, 100, 5, 5, 5]


def test_a_shuffled_class_order_permutes_sizes_and_leaves_the_drawing_alone():
    labels = balanced(10, 200)
    plain = LongTail(imbalance=20)
    shuffled = LongTail.model_validate({"imbalance": 20, "class_order": {"shuffled": 4}})
    a = select_long_tail(labels, plain, names(10))
    b = select_long_tail(labels, shuffled, names(10))
    sizes_a, sizes_b = np.bincount(labels[a]), np.bincount(labels[b])
    order = np.random.RandomState(4).permutation(10)
    assert not np.array_equal(order, np.arange(10))
    assert np.array_equal(sizes_b[order], sizes_a)
    for c in range(10):  # of two sizes of one class, the smaller set begins the larger one
        mine, other = b[labels[b] == c], a[labels[a] == c]
        both = min(len(mine), len(other))
        assert np.array_equal(mine[:both], other[:both])


def test_max_per_class_is_the_head():
    labels = balanced(3, 300)
    kept = select_long_tail(labels, LongTail(imbalance=100, max_per_class=200), names(3))
    assert np.bincount(labels[kept]).tolist() == [200, 20, 2]


def test_natural_keeps_everything_up_to_the_cap():
    labels = np.repeat([0, 1, 3], [50, 20, 3])
    everything = select_long_tail(labels, LongTail(profile="natural"), names(4))
    assert sorted(everything.tolist()) == list(range(73))
    capped = select_long_tail(labels, LongTail(profile="natural", max_per_class=10), names(4))
    assert np.bincount(labels[capped]).tolist() == [10, 10, 0, 3]


def test_a_class_that_holds_too_few_is_named_with_need_and_have():
    labels = np.repeat([0, 1, 2], [100, 5, 4])
    with pytest.raises(DataError) as error:
        select_long_tail(labels, LongTail(imbalance=10), names(3))
    message = str(error.value)
    assert "needs 31 images of class 'class-1', which holds 5 (2 of 3 classes are short)" in message
    assert "max_per_class to 18 or less" in message  # int(18 * 0.316) = 5, int(19 * 0.316) = 6


def test_the_advice_works():
    labels = np.repeat([0, 1, 2], [100, 5, 4])
    kept = select_long_tail(labels, LongTail(imbalance=10, max_per_class=18), names(3))
    assert np.bincount(labels[kept]).tolist() == [18, 5, 1]
    with pytest.raises(DataError):
        select_long_tail(labels, LongTail(imbalance=10, max_per_class=19), names(3))


def test_a_head_larger_than_the_class_is_an_error():
    with pytest.raises(DataError, match="needs 11 images of class 'class-0', which holds 10"):
        select_long_tail(balanced(2, 10), LongTail(imbalance=2, max_per_class=11), names(2))


@pytest.mark.parametrize("kind", ["exp", "step"])
def test_a_class_left_without_an_image_is_an_error(kind):
    with pytest.raises(DataError, match="'class-1' without an image"):
        select_long_tail(balanced(2, 10), LongTail(profile=kind, imbalance=11), names(2))


def test_a_label_that_never_occurs_is_short():
    with pytest.raises(DataError, match="class 'class-1', which holds 0"):
        select_long_tail(np.repeat([0, 2], 10), LongTail(imbalance=2), names(3))


def test_the_selection_leaves_numpys_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    select_long_tail(balanced(3, 30), LongTail(imbalance=3), names(3))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
