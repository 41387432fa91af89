import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from sslgh.data import ImageSet, PretrainDataset, SupervisedDataset
from sslgh.data.augment import NUM_PARAMS
from sslgh.data.batch_sampler import (
    LABELED,
    LOCAL,
    ORDER,
    QUOTA,
    ROUND,
    SUBSTITUTE,
    VIEWS,
    WEAK,
    SampleKey,
    rng_for,
)
from sslgh.data.supervised_augment import random_view
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.data import Augment

N = 10
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 20, 20, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 2, 0, 1])
IMAGES = ImageSet(PIXELS, LABELS, ("a", "b", "c"), tuple(str(i) for i in range(N)))
AUGMENT = Augment()


def views(seed=0, size=20, **options):
    return SupervisedDataset(IMAGES, AUGMENT, size=size, seed=seed, **options)


def same(a, b):
    return all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True)
    )


def test_an_item_has_view_crops_draws_label_index_and_nothing_broken():
    for index in range(N):
        view, crops, random_params, label, found, broken = views(contrast=True)[
            SampleKey(3, 0, index)
        ]
        assert (label, found, broken) == (LABELS[index], index, -1)
    assert (view.shape, view.dtype) == ((3, 20, 20), torch.uint8)
    assert (crops.shape, crops.dtype) == ((2, 3, 20, 20), torch.uint8)
    assert (random_params.shape, random_params.dtype) == ((2, NUM_PARAMS), torch.float32)
    assert len(views()) == N


def test_without_contrast_there_are_no_crops_and_the_view_is_the_same():
    view, crops, random_params, *rest = views(policy="autoaugment")[SampleKey(3, 0, 7)]
    assert (crops.shape, crops.dtype) == ((0, 3, 20, 20), torch.uint8)
    assert (random_params.shape, random_params.dtype) == ((0, NUM_PARAMS), torch.float32)
    with_crops = views(policy="autoaugment", contrast=True)[SampleKey(3, 0, 7)]
    assert same((view, *rest), (with_crops[0], *with_crops[3:]))


def test_the_crops_are_those_of_self_supervised_training():
    crops, random_params, *_ = PretrainDataset(IMAGES, AUGMENT, size=20, seed=4)[SampleKey(2, 0, 5)]
    assert same((crops, random_params), views(seed=4, contrast=True)[SampleKey(2, 0, 5)][1:3])


@pytest.mark.parametrize("policy", ["crop-flip", "autoaugment", "randaugment", "none"])
def test_the_view_follows_the_policy(policy):
    rng = rng_for(1, LABELED, 2, 5)
    expected = random_view(IMAGES.image(5), Preprocessing(16), policy, rng)
    assert np.array_equal(views(seed=1, size=16, policy=policy)[SampleKey(2, 0, 5)][0], expected)


def test_an_item_depends_on_seed_epoch_and_index_alone():
    first = views(policy="autoaugment", contrast=True)
    expected = first[SampleKey(3, 0, 7)]
    _ = first[SampleKey(0, 0, 0)], torch.manual_seed(99)
    assert same(first[SampleKey(3, 0, 7)], expected)
    assert same(views(policy="autoaugment", contrast=True)[SampleKey(3, 0, 7)], expected)


def test_seed_epoch_repetition_and_image_each_bring_a_fresh_view():
    keys = [SampleKey(e, r, 0) for e, r in ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1))]
    drawn = [views(contrast=True)[key] for key in keys] + [
        views(seed=1, contrast=True)[SampleKey(0, 0, 0)]
    ]
    for position, least in ((0, 6), (1, 7)):  # two of the 162 shifts may be alike
        assert len({item[position].numpy().tobytes() for item in drawn}) >= least
    flat = ImageSet(np.repeat(PIXELS[:1], N, axis=0), LABELS, ("a", "b", "c"), IMAGES.names)
    alike = SupervisedDataset(flat, AUGMENT, size=20, seed=0)
    assert len({alike[SampleKey(0, 0, i)][0].numpy().tobytes() for i in range(N)}) >= N - 2


def test_no_two_purposes_share_a_stream():
    purposes = (ORDER, VIEWS, WEAK, QUOTA, ROUND, LABELED, LOCAL, SUBSTITUTE)
    assert purposes == tuple(range(8))  # a new one at the end: the old streams stay
    assert len({rng_for(0, purpose, 1, 1).random() for purpose in purposes}) == 8


def test_items_collate_to_a_batch():
    for contrast, number in ((True, 2), (False, 0)):
        batch = default_collate([views(contrast=contrast)[SampleKey(0, 0, i)] for i in (4, 2, 9)])
        shapes = [tuple(part.shape) for part in batch]
        assert shapes == [
            (3, 3, 20, 20),
            (3, number, 3, 20, 20),
            (3, number, NUM_PARAMS),
            (3,),
            (3,),
            (3,),
        ]
        assert batch[3].tolist() == LABELS[[4, 2, 9]].tolist()
        assert batch[3].dtype == batch[4].dtype == torch.int64


def test_files_give_what_memory_gives(tmp_path):
    paths = tuple(tmp_path / f"{i}.png" for i in range(N))
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    files = ImageSet(paths, LABELS, IMAGES.class_names, IMAGES.names)
    from_files = SupervisedDataset(
        files, AUGMENT, size=20, seed=0, policy="randaugment", contrast=True
    )
    assert same(
        from_files[SampleKey(1, 0, 3)],
        views(policy="randaugment", contrast=True)[SampleKey(1, 0, 3)],
    )


def test_images_without_labels_are_an_error():
    unlabeled = ImageSet(PIXELS, None, (), IMAGES.names)
    with pytest.raises(ValueError, match="supervised training needs labels"):
        SupervisedDataset(unlabeled, AUGMENT, size=20, seed=0)
