import numpy as np
import pytest
import torch
from PIL import Image

from sslgh.data import (
    DataError,
    ImageSet,
    PretrainDataset,
    ResumableBatchSampler,
    SupervisedDataset,
    labeled_loader,
)
from sslgh.data.batch_sampler import SUBSTITUTE, SampleKey, rng_for
from sslgh.data.image_set import load_or_replace
from sslgh.data.loader import view_loader
from sslgh.recipe.data import Augment, Data

N = 64
BROKEN = list(range(0, N, 8))
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(N) % 3
WHOLE = ImageSet(PIXELS, LABELS, ("a", "b", "c"), tuple(map(str, range(N))))


@pytest.fixture
def files(tmp_path):
    """64 photos of which every 8th is broken, each in another way."""
    paths = tuple(tmp_path / f"{i:02}.png" for i in range(N))
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    for number, position in enumerate(BROKEN):
        path = paths[position]
        if number % 3 == 0:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:40] if number % 3 == 1 else b"")
    return ImageSet(paths, LABELS, WHOLE.class_names, WHOLE.names)


def views(images):
    return PretrainDataset(images, Augment(local_crops=2), size=8, seed=3)


def same(a, b):
    return all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True)
    )


def test_images_that_can_be_read_are_shown_as_if_none_were_broken(files):
    for index in set(range(N)) - set(BROKEN):
        assert same(views(files)[SampleKey(2, 0, index)], views(WHOLE)[SampleKey(2, 0, index)])


def test_a_broken_image_is_replaced_by_one_that_reads_and_both_are_named(files):
    for index in BROKEN:
        *_, shown, broken = views(files)[SampleKey(2, 0, index)]
        assert broken == index
        assert int(shown) not in BROKEN


def test_view_crops_label_and_index_are_all_the_substitutes(files):
    whole, data = (
        SupervisedDataset(images, Augment(), size=8, seed=3, contrast=True)
        for images in (WHOLE, files)
    )
    for index in range(N):
        *item, broken = data[SampleKey(1, 0, index)]
        key = load_or_replace(files, SampleKey(1, 0, index), seed=3).key
        assert same(item, whole[key][:-1])
        assert broken == (index if index in BROKEN else -1)
        assert (item[-1] in BROKEN, item[-2]) == (False, LABELS[item[-1]])


def test_a_substitute_is_the_first_image_drawn_that_can_be_read(files):
    for index in BROKEN:
        drawn = rng_for(3, SUBSTITUTE, 5, index).integers(N, size=20).tolist()
        expected = next(position for position in drawn if position not in BROKEN)
        assert load_or_replace(files, SampleKey(5, 0, index), seed=3).key.index == expected


def test_a_substitute_shows_other_views_than_the_image_has_anyway(files):
    for epoch, repeat in ((0, 0), (4, 0), (4, 1)):
        for index in BROKEN:
            crops, random_params, small, small_draws, shown, _ = views(files)[
                SampleKey(epoch, repeat, index)
            ]
            for often in (repeat, 0, repeat + 1):
                anyway = views(WHOLE)[SampleKey(epoch, often, int(shown))]
                for mine, theirs in zip(
                    (crops, random_params, small, small_draws), anyway[:4], strict=True
                ):
                    assert not torch.equal(mine, theirs)


def test_two_broken_images_do_not_show_the_same_views(tmp_path):
    one = tmp_path / "0.png"
    Image.fromarray(PIXELS[0]).save(one)
    images = ImageSet((one, tmp_path / "gone", tmp_path / "too"), None, (), ("0", "1", "2"))
    first, second, later = (
        views(images)[SampleKey(0, repeat, index)] for repeat, index in ((0, 1), (0, 2), (1, 1))
    )
    assert [item[4] for item in (first, second, later)] == [0, 0, 0]
    assert len({item[1].numpy().tobytes() for item in (first, second, later)}) == 3


def test_views_of_substitutes_lie_beyond_all_repetitions_and_keep_the_epoch(files):
    for index in BROKEN:
        key = load_or_replace(files, SampleKey(7, 3, index), seed=3).key
        assert key.epoch == 7
        assert 2**30 <= key.repeat < 2**31


def test_images_in_memory_are_never_replaced():
    for index in range(N):
        key = SampleKey(1, 0, index)
        shown = load_or_replace(WHOLE, key, seed=3)
        assert (shown.key, shown.broken) == (key, -1)


def test_a_set_without_a_readable_image_is_given_up_after_100_tries(tmp_path):
    images = ImageSet((tmp_path / "a", tmp_path / "b"), None, (), ("a", "b"))
    with pytest.raises(
        DataError, match=r"^100 images drawn at random cannot be read, .*bring them"
    ):
        load_or_replace(images, SampleKey(0, 0, 0), seed=0)


@pytest.mark.parametrize("loader", [view_loader, labeled_loader])
def test_workers_and_resuming_do_not_change_what_is_shown_instead(files, loader):
    def batches(workers, **order):
        order = ResumableBatchSampler(N, 10, seed=3, epochs=2, **order)
        data = Data(source="folder", workers=workers)
        return list(loader(files, data, size=8, seed=3, order=order))

    alone = batches(0)
    broken = torch.cat([batch[-1] for batch in alone])
    assert sorted(broken[broken >= 0].tolist()) == sorted(2 * BROKEN)
    for other, expected in ((batches(2), alone), (batches(0, start=(1, 2)), alone[9:])):
        assert len(other) == len(expected)
        assert all(same(mine, theirs) for mine, theirs in zip(other, expected, strict=True))
