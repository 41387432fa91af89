import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as F

from sslgh.data import EvalDataset, ImageSet, PretrainDataset, local_side
from sslgh.data.augment import NUM_PARAMS
from sslgh.data.batch_sampler import LOCAL, ORDER, VIEWS, WEAK, SampleKey, rng_for
from sslgh.data.crop import random_box, resized_crop
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.data import Augment

N = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 20, 20, 3), dtype=np.uint8)
IMAGES = ImageSet(PIXELS, None, (), tuple(str(i) for i in range(N)))


def two_views(seed=0, **augment):
    return PretrainDataset(IMAGES, Augment(**augment), size=16, seed=seed)


def same(a, b):
    return all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True)
    )


def test_an_item_has_two_crops_their_draws_the_index_and_nothing_broken():
    crops, random_params, local_crops, local_draws, index, broken = two_views()[SampleKey(3, 0, 7)]
    assert crops.shape == (2, 3, 16, 16)
    assert crops.dtype == torch.uint8
    assert random_params.shape == (2, NUM_PARAMS)
    assert random_params.dtype == torch.float32
    assert random_params.min() >= 0
    assert random_params.max() < 1
    assert (local_crops.shape, local_crops.dtype) == ((0, 3, 8, 8), torch.uint8)
    assert (local_draws.shape, local_draws.dtype) == ((0, NUM_PARAMS), torch.float32)
    assert (index, broken) == (7, -1)
    assert len(two_views()) == N


def test_an_item_has_as_many_local_crops_as_the_recipe_says():
    _, _, local_crops, local_draws, _, _ = two_views(local_crops=5, local_size=6)[
        SampleKey(3, 0, 7)
    ]
    assert (local_crops.shape, local_crops.dtype) == ((5, 3, 6, 6), torch.uint8)
    assert (local_draws.shape, local_draws.dtype) == ((5, NUM_PARAMS), torch.float32)
    assert len(torch.unique(local_crops.flatten(1), dim=0)) == 5


def test_the_full_crops_and_colors_are_those_of_the_first_release():
    # Its code: 22 numbers for a crop and 13 for the colors, view by view (flip, whether to jitter, gray,
    # blur and sigma, eight for the jitter). A change changes every run: it belongs into the changelog.
    drawn = [0, 1, 10, 11, 12, *range(2, 10)]
    for local_crops in (0, 3):
        crops, random_params, *_ = two_views(seed=4, local_crops=local_crops)[SampleKey(3, 0, 7)]
        uniform = rng_for(4, VIEWS, 3, 7).random((2, 35), dtype=np.float32)
        assert np.array_equal(random_params[:, drawn], uniform[:, 22:])
        for crop, numbers in zip(crops, uniform.tolist(), strict=True):
            box = random_box(20, 20, numbers[:22], scale=(0.1, 1.0), ratio=(3 / 4, 4 / 3))
            assert np.array_equal(crop, resized_crop(IMAGES.image(7), box, 16, "bilinear"))
    assert random_params[:, :2].flatten().tolist() == pytest.approx(
        [0.9287914633750916, 0.34612876176834106, 0.17858964204788208, 0.6518387794494629]
    )


def test_what_came_later_is_drawn_of_its_own():
    views = two_views(local_crops=2)
    items = [views[SampleKey(epoch, 0, i)] for epoch in range(3) for i in range(N)]
    random_params = torch.cat([torch.cat((item[1], item[3])) for item in items])
    assert len(torch.unique(random_params)) > 0.999 * random_params.numel()
    fewer = two_views(local_crops=1)[SampleKey(2, 0, N - 1)]
    assert torch.equal(fewer[2][0], items[-1][2][0])


def test_a_local_crop_is_a_small_part_of_the_image_and_a_full_one_is_not():
    x = np.linspace(0, 255, 200).astype(np.uint8)
    plane = np.stack(np.broadcast_arrays(x[None], x[:, None], np.uint8(0)), axis=-1)
    images = ImageSet(plane[None], None, (), ("0",))
    augment = Augment(local_crops=4, crop_scale=(0.6, 1), crop_ratio=(1, 1))
    views = PretrainDataset(images, augment, size=56, seed=0)
    items = [views[SampleKey(epoch, 0, 0)] for epoch in range(60)]

    def areas(crops):
        """Share of the image, from the first and last pixel's color; 1 is one pixel less."""
        side = crops.shape[-1]
        width = crops[:, 0, 0, -1].double() - crops[:, 0, 0, 0].double()
        return (width / 255 * side / (side - 1)) ** 2

    local = torch.cat([areas(item[2]) for item in items])
    assert items[0][2].shape == (4, 3, 24, 24)
    assert 0.04 < local.min() < 0.08
    assert 0.36 < local.max() < 0.43
    assert abs(local.mean() - 0.225) < 0.03
    assert torch.cat([areas(item[0]) for item in items]).min() > 0.55


def test_the_side_of_a_local_crop():
    sides = {4: 4, 8: 4, 16: 8, 28: 12, 32: 12, 64: 28, 84: 36, 96: 40, 224: 96}
    assert {size: local_side(Augment(), size) for size in sides} == sides
    assert local_side(Augment(local_size=10), 32) == 10


def test_an_item_depends_on_seed_epoch_and_index_alone():
    views = two_views()
    first = views[SampleKey(3, 0, 7)]
    _ = views[SampleKey(0, 0, 0)], np.random.default_rng().random()
    torch.manual_seed(99)
    assert same(views[SampleKey(3, 0, 7)], first)
    assert same(two_views()[SampleKey(3, 0, 7)], first)


def test_seed_epoch_index_and_view_each_change_the_draws():
    items = [
        two_views()[SampleKey(0, 0, 0)],
        two_views()[SampleKey(1, 0, 0)],
        two_views()[SampleKey(0, 0, 1)],
        two_views(seed=1)[SampleKey(0, 0, 0)],
    ]
    random_params = torch.cat([item[1] for item in items])
    assert len(torch.unique(random_params, dim=0)) == 8
    assert not torch.equal(items[0][0][0], items[0][0][1])


def test_purposes_do_not_share_a_stream():
    values = {rng_for(0, purpose, 1, 1).random() for purpose in (ORDER, VIEWS, WEAK, LOCAL)}
    assert len(values) == 4
    swapped = {rng_for(0, VIEWS, 1, 2).random(), rng_for(0, VIEWS, 2, 1).random()}
    assert len(swapped) == 2


def test_streams_of_neighboring_epochs_do_not_overlap():
    random_params = [rng_for(0, VIEWS, epoch, 0).random(100).tolist() for epoch in range(5)]
    assert len({value for values in random_params for value in values}) == 500


def test_streams_are_the_same_on_every_machine_and_version():
    # A change of these numbers changes every run: it belongs into the changelog.
    drawn = rng_for(5, VIEWS, 2, 3).random(2, dtype=np.float32).tolist()
    assert drawn == pytest.approx([0.7303707599639893, 0.9635338187217712])


def test_draws_are_uniform():
    random_params = torch.cat(
        [two_views()[SampleKey(epoch, 0, i)][1] for epoch in range(60) for i in range(N)]
    )
    assert (random_params.mean(dim=0) - 0.5).abs().max() < 4.5 / np.sqrt(12 * len(random_params))
    assert torch.allclose(random_params.var(dim=0), torch.full((NUM_PARAMS,), 1 / 12), rtol=0.1)
    correlation = torch.corrcoef(random_params.T) - torch.eye(NUM_PARAMS)
    assert correlation.abs().max() < 4.5 / np.sqrt(len(random_params))


def test_the_crop_follows_the_recipe():
    whole = two_views(crop_scale=(1, 1), crop_ratio=(1, 1))[SampleKey(0, 0, 5)][0]
    expected = F.resize(IMAGES.image(5), [16, 16])
    assert np.array_equal(whole[0].permute(1, 2, 0), np.asarray(expected))
    assert torch.equal(whole[0], whole[1])
    bicubic = two_views(crop_scale=(1, 1), crop_ratio=(1, 1), interpolation="bicubic")[
        SampleKey(0, 0, 5)
    ][0]
    assert not torch.equal(whole, bicubic)


def test_items_collate_to_a_batch():
    views = two_views(local_crops=3)
    *parts, broken = default_collate([views[SampleKey(0, 0, i)] for i in (4, 2)])
    crops, random_params, local_crops, local_draws, index = parts
    assert broken.tolist() == [-1, -1]
    assert crops.shape == (2, 2, 3, 16, 16)
    assert random_params.shape == (2, 2, NUM_PARAMS)
    assert local_crops.shape == (2, 3, 3, 8, 8)
    assert local_draws.shape == (2, 3, NUM_PARAMS)
    assert index.tolist() == [4, 2]
    assert index.dtype == torch.int64


def test_plain_leaves_images_of_the_right_size_alone():
    image, index = EvalDataset(IMAGES, Preprocessing().at(20))[3]
    assert np.array_equal(image.permute(1, 2, 0), PIXELS[3])
    assert index == 3
    assert len(EvalDataset(IMAGES, Preprocessing().at(20))) == N


def test_plain_cuts_other_images_to_the_center():
    image, _ = EvalDataset(IMAGES, Preprocessing().at(14))[3]
    expected = F.center_crop(F.resize(IMAGES.image(3), [16]), [14])
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(expected))


def weak(size, seed):
    return EvalDataset(IMAGES, Preprocessing().at(size), weak_seed=seed)


def test_a_weak_view_is_a_shift_of_at_most_four_pixels_with_zeros_and_a_flip():
    found = set()
    for seed in range(40):
        for i in range(N):
            view, index = weak(20, seed)[i]
            assert index == i
            found.add(_shift(view.numpy(), PIXELS[i].transpose(2, 0, 1)))
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(9))
    assert {flip for _, _, flip in found} == {True, False}


def test_a_seed_gives_every_image_a_weak_view_of_its_own():
    views = weak(20, 0)
    shifts = {_shift(views[i][0].numpy(), PIXELS[i].transpose(2, 0, 1)) for i in range(N)}
    assert len(shifts) > N // 2


def _shift(view, image):
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    for flip in (False, True):
        upright = view[..., ::-1] if flip else view
        for y in range(9):
            for x in range(9):
                if np.array_equal(padded[:, y : y + 20, x : x + 20], upright):
                    return y, x, flip
    raise AssertionError("no shift explains this view")


def test_a_weak_view_is_drawn_once():
    a, b = weak(20, 1), weak(20, 1)
    assert same(a[2], b[2])
    assert same(a[2], a[2])
    assert not same(a[2], weak(20, 2)[2])


def test_a_weak_view_of_a_large_image_is_a_resized_crop():
    views = torch.stack([weak(80, seed)[0][0] for seed in range(20)])
    assert views.shape == (20, 3, 80, 80)
    border = torch.cat([views[..., 0], views[..., -1]])
    assert (border == 0).float().mean() < 0.05  # no zero padding
    assert len(torch.unique(views.flatten(1), dim=0)) == 20


def test_weak_views_are_those_of_the_first_release():
    # A change of these numbers is a new version of the gh-* protocols.
    for i in range(N):
        flip, top, left = rng_for(5, WEAK, 0, i).random(3)
        shift = int(top * 9), int(left * 9), bool(flip < 0.5)
        assert _shift(weak(20, 5)[i][0].numpy(), PIXELS[i].transpose(2, 0, 1)) == shift
        flip, *params = rng_for(5, WEAK, 0, i).random(23).tolist()
        box = random_box(20, 20, params, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
        view = resized_crop(IMAGES.image(i), box, 80, "bilinear")
        expected = view[..., ::-1] if flip < 0.5 else view
        assert np.array_equal(weak(80, 5)[i][0], expected)
