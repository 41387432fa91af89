import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sslgh.data import MEAN, STD, colour, normalize, render_views
from sslgh.recipe.data import Augment

FULL = Augment(blur=0.5)


def batch(n, size=16, seed=0, draws_of_own=True):
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randint(0, 256, (n, 2, 3, size, size), dtype=torch.uint8, generator=generator)
    draws = torch.rand(n, 2, colour.NUM_DRAWS, generator=generator)
    return crops, draws if draws_of_own else draws[:1, :1].expand(n, 2, -1)


def by_torchvision(crop, u, augment):
    """One image through torchvision's functions with the factors that its draws stand for."""
    u = u.tolist()
    x = crop.double() / 255
    if u[colour.FLIP] < augment.flip:
        x = F.horizontal_flip(x)
    if u[colour.JITTER] < augment.jitter:
        strengths = {"brightness": augment.brightness, "contrast": augment.contrast}
        strengths |= {"saturation": augment.saturation, "hue": augment.hue}
        steps = []
        for position, (name, s) in enumerate(strengths.items()):
            centre = 0 if name == "hue" else 1
            factor = centre + s * (2 * u[colour.BRIGHTNESS + position] - 1)
            steps.append((u[colour.MOMENTS][position], getattr(F, f"adjust_{name}"), factor))
        for _, adjust, factor in sorted(steps, key=lambda step: step[0]):
            x = adjust(x, factor)
    if u[colour.GREY] < augment.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if u[colour.BLUR] < augment.blur:
        side = crop.shape[-1]
        low, high = augment.blur_sigma
        sigma = (low + (high - low) * u[colour.SIGMA]) * side / 224
        radius = math.ceil(3 * high * side / 224)
        x = F.gaussian_blur(x, [2 * radius + 1] * 2, [sigma] * 2)
    return F.normalize(x, list(MEAN), list(STD))


@pytest.mark.parametrize(
    ("augment", "size"),
    [
        (Augment(), 32),
        (FULL, 32),
        (Augment(blur=1.0, blur_sigma=(0.5, 9.0)), 48),
        (Augment(jitter=1.0, grayscale=0.0, flip=0.0), 16),
        (
            Augment(
                jitter=1.0, hue=0.5, brightness=1.0, contrast=1.0, saturation=1.0, grayscale=0.0
            ),
            16,
        ),
        (Augment(jitter=1.0, hue=0.0, grayscale=0.0), 16),
        (Augment(jitter=0.0), 16),
    ],
)
def test_every_image_is_what_torchvision_makes_of_it_alone(augment, size):
    crops, draws = batch(60, size)
    views = render_views(crops, draws, augment)
    for view in range(2):
        assert views[view].dtype == torch.float32
        for i in range(60):
            expected = by_torchvision(crops[i, view], draws[i, view], augment)
            # 1e-5 in 0..1 is 4.5e-5 after division by the standard deviation.
            assert torch.allclose(views[view][i].double(), expected, atol=4.5e-5), (view, i)


def test_grey_black_and_saturated_pixels_have_no_special_way_out():
    levels = torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels)
    crop = torch.cat([colours, colours.flip(0)])[:225].T.reshape(3, 15, 15)
    crops = crop.expand(200, 2, 3, 15, 15)
    _, draws = batch(200, 4)
    augment = Augment(jitter=1.0, hue=0.5)
    views = render_views(crops, draws, augment)
    assert all(view.isfinite().all() for view in views)
    for i in range(40):
        expected = by_torchvision(crop, draws[i, 0], augment)
        assert torch.allclose(views[0][i].double(), expected, atol=4.5e-5)


def test_the_portions_of_a_batch_do_not_change_it(monkeypatch):
    crops, draws = batch(37)
    whole = render_views(crops, draws, FULL)
    monkeypatch.setattr(colour, "PORTION", 1)
    alone = render_views(crops, draws, FULL)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, alone, strict=True))


def test_an_image_does_not_depend_on_its_company():
    crops, draws = batch(8)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    straight = render_views(crops, draws, FULL)
    turned = render_views(crops[order], draws[order], FULL)
    assert all(
        torch.allclose(a[order], b, atol=1e-6) for a, b in zip(straight, turned, strict=True)
    )


def test_every_image_has_a_draw_of_its_own():
    crops = torch.randint(0, 256, (1, 1, 3, 16, 16), dtype=torch.uint8).expand(64, 2, 3, 16, 16)
    _, draws = batch(64)
    views = torch.cat(render_views(crops, draws, Augment(jitter=1.0, grayscale=0.0)))
    assert len({tuple(view.flatten()[:30].tolist()) for view in views}) == 128


def test_without_augmentation_a_view_is_the_normalised_crop():
    crops, draws = batch(5)
    nothing = Augment(flip=0, jitter=0, grayscale=0, blur=0)
    views = render_views(crops, draws, nothing)
    for view in range(2):
        assert torch.allclose(views[view], normalize(crops[:, view]), atol=1e-6)


def test_probabilities_are_those_of_the_recipe():
    crops, draws = batch(4000, 4)
    grey = render_views(crops, draws, Augment(flip=0, jitter=0, grayscale=0.2))[0]
    undone = grey * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    share = ((undone[:, 0] - undone[:, 1]).abs().amax(dim=(1, 2)) < 1e-5).float().mean()
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 4000)
    flipped = render_views(crops, draws, Augment(flip=0.3, jitter=0, grayscale=0))[1]
    mirrored = normalize(crops[:, 1].flip(-1))
    share = (flipped - mirrored).abs().amax(dim=(1, 2, 3)).lt(1e-4).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_the_largest_draw_cannot_escape_a_probability_of_one():
    crops, draws = batch(3)
    always = Augment(flip=1, jitter=0, grayscale=0)
    views = render_views(crops, torch.full_like(draws, 1 - 2**-24), always)
    assert torch.allclose(views[0], normalize(crops[:, 0].flip(-1)), atol=1e-6)


def test_views_have_the_statistics_of_torchvisions_own_transform():
    pattern = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    crop = torch.from_numpy(pattern).permute(2, 0, 1)
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.Normalize(MEAN, STD),
        ]
    )
    torch.manual_seed(0)
    n = 3000
    expected = torch.stack([theirs(crop) for _ in range(n)])
    _, draws = batch(n, 4, seed=9)
    got = render_views(crop.expand(n, 2, 3, 8, 8), draws, Augment())[0]
    error = ((expected.var(dim=0) + got.var(dim=0)) / n).sqrt()
    # 192 correlated means: 4.5 standard errors; standard deviations within 8 percent.
    assert ((expected.mean(dim=0) - got.mean(dim=0)).abs() <= 4.5 * error).all()
    assert torch.allclose(expected.std(dim=0), got.std(dim=0), rtol=0.08)
    assert torch.allclose(
        expected.mean(dim=(2, 3)).std(dim=0), got.mean(dim=(2, 3)).std(dim=0), rtol=0.08
    )


def test_the_order_of_the_jitter_takes_all_24_orders_alike():
    _, draws = batch(12_000, 4)
    order = draws[:, 0, colour.MOMENTS].argsort(dim=1)
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 500).abs().max() < 4.5 * math.sqrt(500)


def test_autocast_does_not_coarsen_the_views():
    crops, draws = batch(4)
    expected = render_views(crops, draws, FULL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = render_views(crops, draws, FULL)
    assert all(torch.equal(a, b) for a, b in zip(expected, views, strict=True))


def test_the_crops_are_not_written_to():
    crops, draws = batch(4)
    before = crops.clone(), draws.clone()
    render_views(crops, draws, FULL)
    assert torch.equal(crops, before[0])
    assert torch.equal(draws, before[1])


def test_shapes_that_do_not_fit_are_named():
    crops, draws = batch(4)
    with pytest.raises(ValueError, match=r"got \(4, 2, 3, 16, 16\) and \(3, 2, 13\)"):
        render_views(crops, draws[:3], FULL)
    with pytest.raises(ValueError, match=r"crops must be \(N, 2, 3, S, S\)"):
        render_views(crops[:, :1], draws, FULL)


def test_normalize_takes_bytes_and_floats_to_the_same_values():
    crops, _ = batch(2)
    floats = crops.double() / 255
    expected = F.normalize(floats[:, 0], list(MEAN), list(STD))
    assert torch.allclose(normalize(crops[:, 0]).double(), expected, atol=1e-6)
    assert torch.allclose(normalize(floats[:, 0]), expected)
    assert normalize(crops).shape == crops.shape


@pytest.mark.gpu
def test_rendering_never_waits_for_the_device():
    crops, draws = (tensor.cuda() for tensor in batch(64, 32))
    expected = render_views(crops.cpu(), draws.cpu(), FULL)
    torch.cuda.set_sync_debug_mode("error")
    views = render_views(crops, draws, FULL)
    torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(expected, views, strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-4)
