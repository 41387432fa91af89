import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as F

from sslgh.data import rand_augment as module
from sslgh.data.rand_augment import BOOST_PARAMS, OPERATIONS, rand_augment

SIDE = 24
PIXELS = np.random.default_rng(0).integers(20, 220, (6, SIDE, SIDE, 3), dtype=np.uint8)
PIXELS[1] = np.add.outer(3 * np.arange(SIDE), 2 * np.arange(SIDE))[..., None] + [5, 40, 90]
PIXELS[2, ..., 1] = 77  # a channel of one value
PIXELS[3] //= 8  # too few levels to be equalized further
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255


def draws_for(*names, n=1, negative=False, across=0.4, down=0.7, magnitude=0.5, done=0.0):
    """The same draws for every image: they choose these operations."""
    random_params = [magnitude]
    for name in names:
        sign = 0.9 if negative else 0.1
        random_params += [
            (OPERATIONS.index(name) + 0.5) / len(OPERATIONS),
            done,
            sign,
            across,
            down,
        ]
    return torch.tensor(random_params + [0.0] * (BOOST_PARAMS - len(random_params))).expand(n, -1)


def strength_for(level):
    """What makes 10 + 20 strength the magnitude 30 level."""
    return (30 * level - 10) / 20


def apply(name, level, images=IMAGES, **random_params):
    strength = torch.full((len(images),), strength_for(level))
    return rand_augment(images, strength, draws_for(name, n=len(images), **random_params), ops=1)


def by_pillow(name, image, level, *, negative=False, across=0.4, down=0.7):
    """Ranges and calls of the official code, one image at a time."""
    sign = -1 if negative else 1
    affine = {
        "shear-x": (1, sign * 0.6 * level, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, sign * 0.6 * level, 1, 0),
        "translate-x": (1, 0, sign * 0.66 * level * SIDE, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, sign * 0.66 * level * SIDE),
    }
    enhance = {"contrast": "Contrast", "color": "Color", "brightness": "Brightness"}
    enhance["sharpness"] = "Sharpness"
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name in enhance:
        return getattr(ImageEnhance, enhance[name])(image).enhance(0.1 + 1.8 * level)
    if name == "rotate":
        return image.rotate(sign * 60 * level)
    if name == "cutout":
        return cut_out_by_pillow(image, 0.4 * level * SIDE, across * SIDE, down * SIDE)
    values = {"solarize": [110 * level], "posterize": [int(4 + 4 * level)]}
    return getattr(ImageOps, name)(image, *values.get(name, []))


def cut_out_by_pillow(image, width, x, y):
    x, y = int(max(0, x - width / 2)), int(max(0, y - width / 2))
    corner = min(SIDE, x + width), min(SIDE, y + width)
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x, y, *corner), (125, 123, 114))
    return image


def by_torchvision(name, x, level):
    """Torchvision's own, on floats, where it has the operation as the official code means it."""
    factor = 0.1 + 1.8 * level
    return {
        "contrast": lambda: F.adjust_contrast(x, factor),
        "color": lambda: F.adjust_saturation(x, factor),
        "brightness": lambda: F.adjust_brightness(x, factor),
        "sharpness": lambda: F.adjust_sharpness(x, factor),
        "solarize": lambda: F.solarize(x, 110 * level / 255),
        "posterize": lambda: F.posterize(x, int(4 + 4 * level)),
        "autocontrast": lambda: F.autocontrast(x),
        "invert": lambda: F.invert(x),
        "equalize": lambda: F.equalize(x),
    }[name]()


LEVELS = [0.34, 0.513, 0.77, 0.999]  # no threshold on a pixel's value, no shift by half a pixel


@pytest.mark.parametrize("name", OPERATIONS[5:14])
def test_every_operation_on_colors_is_torchvisions(name):
    for level in LEVELS:
        changed = apply(name, level)
        for image, got in zip(IMAGES, changed, strict=True):
            # An ulp of a coordinate apart; equalize and posterize are steps, and equal.
            assert torch.allclose(got, by_torchvision(name, image, level), atol=2e-6), level


# Levels of 255 that PIL's rounding to bytes makes: equalize, invert and solarize are exact there.
ROUNDING = {"contrast": 1.6, "color": 1.6, "brightness": 1, "sharpness": 1.6, "autocontrast": 1}
ROUNDING["posterize"] = 15.5  # PIL's 4 bits of 255 are 240, torchvision's are 15/16


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_that_of_the_official_code(name):
    for level in LEVELS:
        for negative in (False, True):
            changed = apply(name, level, negative=negative)
            for i, got in enumerate(changed):
                pillow = by_pillow(name, Image.fromarray(PIXELS[i]), level, negative=negative)
                expected = torch.from_numpy(np.asarray(pillow).copy()).permute(2, 0, 1)
                apart = (got * 255 - expected).abs()
                if name in OPERATIONS[:5]:
                    # Nearest pixel on both sides; PIL's coordinates are 16-bit fixed-point numbers.
                    assert (apart.amax(dim=0) > 0.01).float().mean() <= 0.01, (level, i)
                else:
                    assert apart.max() <= ROUNDING.get(name, 0.01), (level, i)


def test_posterize_keeps_as_many_bits_as_pillow():
    for level, bits in ((0.34, 5), (0.513, 6), (0.77, 7), (0.999, 7)):
        changed = apply("posterize", level)
        kept = (changed * 2**bits).round() / 2**bits
        assert torch.equal(changed, kept)
        pillow = PIXELS.astype(int) >> (8 - bits)
        assert np.array_equal((changed * 2**bits).permute(0, 2, 3, 1).numpy(), pillow)


@pytest.mark.parametrize(("across", "down"), [(0.0, 0.999), (0.01, 0.5), (0.98, 0.02), (0.5, 0.5)])
def test_cutout_at_the_border_is_that_of_the_official_code(across, down):
    for level in LEVELS:
        changed = apply("cutout", level, across=across, down=down)
        for i, got in enumerate(changed):
            image = Image.fromarray(PIXELS[i])
            expected = np.asarray(by_pillow("cutout", image, level, across=across, down=down))
            assert np.array_equal((got * 255).round().permute(1, 2, 0).numpy(), expected)


def test_two_operations_follow_each_other_at_one_magnitude():
    # 5 + 25 * 0.8 * 0.6 = 17
    strength = torch.full((6,), 0.8)
    random_params = draws_for("sharpness", "contrast", n=6, magnitude=0.6)
    changed = rand_augment(IMAGES, strength, random_params, ops=2)
    for image, got in zip(IMAGES, changed, strict=True):
        once = by_torchvision("sharpness", image, 17 / 30)
        assert torch.allclose(got, by_torchvision("contrast", once, 17 / 30), atol=2e-6)
    again = rand_augment(IMAGES, strength, draws_for("invert", "invert", n=6), ops=2)
    assert torch.allclose(again, IMAGES, atol=1e-6)  # with replacement


def test_one_operation_reads_no_draw_of_magnitude():
    strength = torch.full((6,), 0.8)
    results = [
        rand_augment(IMAGES, strength, draws_for("brightness", n=6, magnitude=u), ops=1)
        for u in (0.1, 0.9)
    ]
    assert torch.equal(*results)
    expected = [by_torchvision("brightness", image, 26 / 30) for image in IMAGES]
    assert torch.allclose(results[0], torch.stack(expected), atol=2e-6)


def random(n, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, size, size, generator=generator)
    random_params = torch.rand(n, BOOST_PARAMS, generator=generator)
    return images, torch.rand(n, generator=generator), random_params


@pytest.mark.parametrize("ops", [1, 2])
def test_strength_zero_leaves_an_image_bit_by_bit(ops):
    images, strength, random_params = random(300)
    strength[::3] = 0
    random_params[:150] = 0  # the draw that would do everything
    changed = rand_augment(images, strength, random_params, ops=ops)
    assert torch.equal(changed[::3], images[::3])
    assert not torch.equal(changed[1::3], images[1::3])


def test_an_operation_is_done_with_the_probability_that_the_strength_is():
    n = 4000
    images, _, random_params = random(n, 6)
    for strength, ops, share in ((0.3, 1, 0.3), (1.0, 1, 1.0), (0.3, 2, 1 - 0.7**2)):
        changed = rand_augment(images, torch.full((n,), strength), random_params, ops=ops)
        found = (changed != images).any(dim=(1, 2, 3)).float().mean()
        assert abs(found - share) <= 4.5 * math.sqrt(share * (1 - share) / n)


def test_all_15_operations_are_chosen_alike():
    n = 6000
    random_params = draws_for("invert", n=n).clone()
    random_params[:, 1] = torch.rand(n, generator=torch.Generator().manual_seed(1))
    random_params[:2, 1] = torch.tensor([0.0, 1 - 2**-24])
    changed = rand_augment(
        IMAGES[:1].expand(n, -1, -1, -1), torch.full((n,), 0.7), random_params, ops=1
    )
    kinds, counts = torch.unique(changed.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == len(OPERATIONS) == 15
    assert (counts - n / 15).abs().max() < 4.5 * math.sqrt(n / 15)
    assert torch.equal(changed[0], apply("shear-x", 0.8)[0])
    assert torch.equal(changed[1], apply("cutout", 0.8)[0])


def test_either_sign_is_drawn_and_both_are_alike():
    images = torch.stack([IMAGES[0], IMAGES[0].flip(-1)])
    one = apply("rotate", 0.5, images)
    other = apply("rotate", 0.5, images, negative=True)
    assert not torch.allclose(one[0], other[0])
    assert ((one[0] - other[1].flip(-1)).abs() > 1e-5).float().mean() < 0.01


@pytest.mark.parametrize("ops", [1, 2])
def test_an_image_does_not_depend_on_its_company(ops):
    images, strength, random_params = random(60)
    together = rand_augment(images, strength, random_params, ops=ops)
    for i in range(60):
        alone = rand_augment(
            images[i : i + 1], strength[i : i + 1], random_params[i : i + 1], ops=ops
        )
        assert torch.allclose(together[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("ops", [1, 2])
def test_the_way_of_a_gpu_gives_the_same(ops, monkeypatch):
    images, strength, random_params = random(400)
    strength[:50] = 0
    images[60:90, 1] = 0.5
    expected = rand_augment(images, strength, random_params, ops=ops)
    monkeypatch.setattr(module, "_change_rows", module._change_all)
    changed = rand_augment(images, strength, random_params, ops=ops)
    assert torch.equal(changed[:50], images[:50])
    # A pixel whose source falls on an edge may be its neighbor's.
    assert ((changed - expected).abs() > 1e-6).float().mean() < 1e-4


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_images_of_every_size_stay_finite_and_in_range(size):
    images, strength, random_params = random(400, size)
    images[:40] = images[:40].round()
    changed = rand_augment(images, strength.sqrt(), random_params, ops=2)
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_the_inputs_are_not_written_to():
    inputs = random(100)
    before = [tensor.clone() for tensor in inputs]
    rand_augment(*inputs, ops=2)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_autocast_does_not_coarsen_an_image():
    inputs = random(100)
    expected = rand_augment(*inputs, ops=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rand_augment(*inputs, ops=2), expected)


def test_shapes_and_numbers_of_operations_that_do_not_fit_are_named():
    images, strength, random_params = random(4)
    with pytest.raises(ValueError, match=r"strength \(N,\).*got \(4, 3, 8, 8\), \(3,\) and"):
        rand_augment(images, strength[:3], random_params, ops=1)
    with pytest.raises(
        ValueError, match=rf"random_params \(N, {BOOST_PARAMS}\), got .* and \(4, 6\)"
    ):
        rand_augment(images, strength, random_params[:, :6], ops=1)
    with pytest.raises(ValueError, match="ops must be 1 or 2, got 3"):
        rand_augment(images, strength, random_params, ops=3)
