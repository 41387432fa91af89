import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from sslgh.data.crop import CROP_PARAMS, random_box
from sslgh.data.supervised_augment import FILL, cut_out, random_view
from sslgh.preprocessing import Preprocessing, pixels

POLICIES = ["crop-flip", "autoaugment", "randaugment", "none"]


def noise(side, seed=0):
    drawn = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def flat(side, color=(200, 40, 90)):
    return Image.new("RGB", (side, side), color)


def view(image, size, policy, seed=0):
    return random_view(image, Preprocessing(size), policy, np.random.default_rng(seed))


def shift(found, image):
    """Row, column and flip that explain a small view."""
    side = image.size[0]
    padded = np.pad(pixels(image), ((0, 0), (4, 4), (4, 4)))
    for flip in (False, True):
        upright = found[..., ::-1] if flip else found
        for y in range(9):
            for x in range(9):
                if np.array_equal(padded[:, y : y + side, x : x + side], upright):
                    return y, x, flip
    raise AssertionError("no shift explains this view")


def test_a_small_view_is_a_shift_of_at_most_four_pixels_with_zeros_and_a_flip():
    image, runs = noise(12), 900
    found = [shift(view(image, 12, "crop-flip", seed), image) for seed in range(runs)]
    rows, columns, flips = (np.array(values) for values in zip(*found, strict=True))
    for offsets in (rows, columns):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert np.abs(counts - runs / 9).max() < 4.5 * np.sqrt(runs / 9)
    assert abs(flips.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(runs)
    assert np.abs(np.corrcoef([rows, columns, flips]) - np.eye(3)).max() < 4.5 / np.sqrt(runs)


def test_a_large_view_is_a_resized_crop_of_8_to_100_percent_and_a_flip():
    ramp = np.zeros((96, 96, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = 2 * np.arange(96)[:, None], 2 * np.arange(96)
    areas, flips = [], []
    for seed in range(300):
        found = view(Image.fromarray(ramp), 80, "crop-flip", seed).astype(float)
        height, width = (np.ptp(found[0].mean(1)) / 2, np.ptp(found[1].mean(0)) / 2)
        areas.append(height * width / 96**2)
        flips.append(found[1, 0, 0] > found[1, 0, -1])
    assert found.shape == (3, 80, 80)
    assert 0.05 < min(areas) < 0.12
    assert 0.9 < max(areas) <= 1
    assert 0.45 < np.mean(areas) < 0.6
    assert abs(np.mean(flips) - 0.5) < 4.5 * 0.5 / np.sqrt(300)


@pytest.mark.parametrize("side", [32, 40])
def test_no_policy_is_the_image_as_evaluation_sees_it(side):
    image = noise(side)
    assert np.array_equal(view(image, 32, "none"), pixels(Preprocessing().at(32).crop(image)))


@pytest.mark.parametrize(
    "own", [{"interpolation": "bicubic"}, {"squash": True}, {"crop_of": (1, 1)}]
)
def test_a_small_view_is_cut_from_what_the_weights_see_in_evaluation(own):
    image = Image.fromarray(np.asarray(noise(40))[:30])  # wider than high
    preprocessing = Preprocessing(12)._replace(**own)
    seen = preprocessing.crop(image)
    assert not np.array_equal(pixels(seen), pixels(Preprocessing(12).crop(image)))
    for seed in range(5):
        found = random_view(image, preprocessing, "crop-flip", np.random.default_rng(seed))
        shift(found, seen)
    found = random_view(image, preprocessing, "none", np.random.default_rng(0))
    assert np.array_equal(found, pixels(seen))


@pytest.mark.parametrize(
    ("own", "stated", "expected"),
    [
        ("bilinear", None, Image.Resampling.BILINEAR),
        ("bicubic", None, Image.Resampling.BICUBIC),
        ("bicubic", "lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_a_large_view_is_resized_as_the_recipe_says_or_as_the_weights_do(own, stated, expected):
    image, preprocessing = noise(96), Preprocessing(80, interpolation=own)
    for seed in range(6):
        generator, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        found = random_view(image, preprocessing, "crop-flip", generator, interpolation=stated)
        box = random_box(
            96, 96, twin.random(CROP_PARAMS).tolist(), scale=(0.08, 1), ratio=(3 / 4, 4 / 3)
        )
        resized = image.crop(box).resize((80, 80), expected)
        crop = pixels(ImageOps.mirror(resized) if twin.random() < 0.5 else resized)
        assert np.array_equal(found, crop)


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_view_is_a_function_of_its_generator(policy, size):
    image = noise(48)
    first = view(image, size, policy, seed=5)
    assert first.shape == (3, size, size)
    assert first.dtype == np.uint8
    torch.manual_seed(1)
    assert np.array_equal(view(image, size, policy, seed=5), first)
    different = sum(not np.array_equal(view(image, size, policy, seed=s), first) for s in range(5))
    assert different == (0 if policy == "none" else 5)


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_view_leaves_every_global_generator_alone(policy, size, monkeypatch):
    def refuse(_):
        raise AssertionError("the generators of the GPUs were seeded")

    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for seed in range(5):
        view(noise(48), size, policy, seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def by_hand(crop, transform, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pixels(transform(Image.fromarray(crop.transpose(1, 2, 0))))


@pytest.mark.parametrize(("size", "table"), [(32, "cifar10"), (80, "imagenet")])
def test_autoaugment_is_torchvisions_policy_on_the_crop_and_flip(size, table):
    transform = v2.AutoAugment(v2.AutoAugmentPolicy(table), fill=FILL)
    image, changed = noise(48), 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        crop = random_view(image, Preprocessing(size), "crop-flip", generator)
        expected = by_hand(crop, transform, int(generator.integers(2**63)))
        found = view(image, size, "autoaugment", seed)
        differs = (found != expected).any(axis=0)
        changed += not np.array_equal(expected, crop)
        if size == 80:
            assert not differs.any()
        else:
            assert not found[:, differs].any()  # Cutout's hole
            assert differs.sum() >= 0.5 * 8 * 8
    assert changed > 20


def test_randaugment_does_each_of_two_operations_half_of_the_time():
    image = noise(48)
    same = [
        np.array_equal(view(image, 32, "randaugment", s), view(image, 32, "crop-flip", s))
        for s in range(500)
    ]
    # At least (1/2)^2; of 14 operations only the identity and autocontrast may leave the image alone.
    low, high = 0.25, (1 / 2 + 1 / 2 * 2 / 14) ** 2
    slack = 4 * 0.5 / np.sqrt(500)
    assert low - slack < np.mean(same) < high + slack


def test_randaugment_is_at_the_top_of_its_scale():
    # A flat image whose colors were left alone; two moves the same way would leave its middle empty.
    widths = set()
    for seed in range(400):
        found = view(flat(40), 32, "randaugment", seed)
        if np.array_equal(found[:, 16, 16], [200, 40, 90]):
            filled = (found == np.array(FILL, dtype=np.uint8)[:, None, None]).all(axis=(0, 1))
            widths.add(int(filled.sum()))
    assert max(widths) == int(150 / 331 * 32)  # the largest step of the policy


def test_only_randaugment_of_large_images_jitters_the_color():
    color = np.array([200, 40, 90])[:, None, None]
    assert (view(flat(96), 80, "crop-flip") == color).all()
    kept = dict.fromkeys((32, 80), 0)
    for size in kept:
        for seed in range(60):
            middle = view(flat(96), size, "randaugment", seed)[:, size // 2, size // 2]
            kept[size] += np.array_equal(middle, color.ravel())
    assert kept[32] > 15
    assert kept[80] == 0


@pytest.mark.parametrize(("side", "half"), [(8, 2), (12, 3), (32, 8), (64, 8)])
def test_the_hole_is_16_pixels_or_half_the_image_and_any_pixel_may_be_its_center(side, half):
    possible = set()
    for y in range(side):
        for x in range(side):
            mask = np.ones((side, side), dtype=np.uint8)
            for i in range(y - half, y + half):
                for j in range(x - half, x + half):
                    if 0 <= i < side and 0 <= j < side:
                        mask[i, j] = 0
            possible.add(mask.tobytes())
    generator, found = np.random.default_rng(0), set()
    for _ in range(800):
        holed = cut_out(np.ones((3, side, side), dtype=np.uint8), generator)
        assert (holed[0] == holed[1]).all()
        assert (holed[0] == holed[2]).all()
        found.add(holed[0].tobytes())
    assert found <= possible
    assert found == possible if side <= 12 else len(found) > 400
