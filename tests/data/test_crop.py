import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from sslgh.data.crop import CROP_PARAMS, random_box, resized_crop
from sslgh.preprocessing import Preprocessing, pixels

RNG = np.random.default_rng(0)
SIZES = [(32, 32), (500, 375), (40, 200), (8, 8)]


def picture(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
def test_boxes_have_the_distribution_of_torchvision(width, height, scale):
    ratio = (3 / 4, 4 / 3)
    random_params = RNG.random((4000, CROP_PARAMS)).tolist()
    ours = np.array([random_box(width, height, u, scale=scale, ratio=ratio) for u in random_params])
    ours = np.stack(
        [ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], axis=1
    )
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(4000)]  # top, left, h, w
    )
    # Differences of two means of 4,000 draws: 4.5 standard errors; spread within 8 percent.
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 4000)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 4.5 * error).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08, atol=0.02)
    quantiles = np.linspace(0.05, 0.95, 19)
    gap = np.quantile(ours, quantiles, axis=0) - np.quantile(theirs, quantiles, axis=0)
    assert (np.abs(gap) <= 0.06 * np.array([height, width, height, width]) + 1).all()


def test_boxes_reach_every_corner_and_stay_inside():
    extreme = [0.0] * CROP_PARAMS, [1 - 2**-24] * CROP_PARAMS
    for random_params in extreme:
        left, top, right, bottom = random_box(
            32, 24, random_params, scale=(0.1, 1.0), ratio=(0.75, 4 / 3)
        )
        assert 0 <= left < right <= 32
        assert 0 <= top < bottom <= 24
    last = random_box(32, 32, extreme[1], scale=(0.25, 0.25), ratio=(1, 1))
    assert last == (16, 16, 32, 32)


@pytest.mark.parametrize(("width", "height"), [(100, 10), (10, 100), (20, 20), (1, 50), (50, 1)])
def test_after_ten_failures_the_box_is_torchvisions_central_crop(width, height):
    # Twice the area of the image never fits.
    scale, ratio = (2.0, 2.0), (0.75, 4 / 3)
    left, top, right, bottom = random_box(
        width, height, [0.5] * CROP_PARAMS, scale=scale, ratio=ratio
    )
    crop = v2.RandomResizedCrop(8, scale=scale, ratio=ratio).make_params(
        [torch.empty(3, height, width)]
    )
    assert (top, left, bottom - top, right - left) == tuple(
        crop[key] for key in ("top", "left", "height", "width")
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_resized_crop_is_torchvisions_to_the_last_bit(width, height, interpolation):
    image = picture(width, height)
    for u in RNG.random((5, CROP_PARAMS)).tolist():
        box = random_box(width, height, u, scale=(0.1, 1.0), ratio=(0.75, 4 / 3))
        left, top, right, bottom = box
        expected = F.resized_crop(
            image,
            top,
            left,
            bottom - top,
            right - left,
            [24, 24],
            F.InterpolationMode(interpolation),
        )
        assert np.array_equal(resized_crop(image, box, 24, interpolation), pixels(expected))


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (40, 30), (8, 8), (225, 224)]
)
def test_the_crop_for_evaluation_is_the_resize_and_center_crop_of_torchvision(width, height):
    image = picture(width, height)
    short = 256 if min(width, height) >= 224 else 224  # a small image loses no border
    expected = v2.Compose([v2.Resize(short), v2.CenterCrop(224)])(image)
    assert np.array_equal(np.asarray(Preprocessing().at(224).crop(image)), np.asarray(expected))


def test_an_image_of_the_right_size_is_left_alone():
    image = picture(32, 32)
    assert Preprocessing().at(32).crop(image) is image


def test_pixels_are_channels_first():
    image = picture(5, 4)
    assert pixels(image).shape == (3, 4, 5)
    assert tuple(pixels(image)[:, 3, 1]) == image.getpixel((1, 3))
