import importlib.util
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sslgh.data import ImageSet, augment_views, datasets, normalize
from sslgh.data import augment as augmentation
from sslgh.data.batch_sampler import SampleKey
from sslgh.data.rand_augment import rand_augment
from sslgh.preprocessing import MEAN, STD
from sslgh.recipe import RecipeError, make_recipe, recipe_text
from sslgh.recipe.data import Augment

FULL = Augment(blur=0.5)


def batch(n, size=16, seed=0, views=2):
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randint(0, 256, (n, views, 3, size, size), dtype=torch.uint8, generator=generator)
    return crops, torch.rand(n, views, augmentation.NUM_PARAMS, generator=generator)


def by_torchvision(crop, u, augment, place=0, size=None):
    """One image through torchvision's functions with the factors that its draws stand for."""
    blur, solarize = (
        share[place] if isinstance(share, tuple) else share
        for share in (augment.blur, augment.solarize)
    )
    u = {name: u[list(columns)].tolist() for name, columns in augmentation.COLUMNS.items()}
    whether, *amounts = u["ColorJitter"]
    x = crop.double() / 255
    if u["Flip"][0] < augment.flip:
        x = F.horizontal_flip(x)
    if whether < augment.jitter:
        strengths = {"brightness": augment.brightness, "contrast": augment.contrast}
        strengths |= {"saturation": augment.saturation, "hue": augment.hue}
        steps = []
        for position, (name, s) in enumerate(strengths.items()):
            center = 0 if name == "hue" else 1
            factor = center + s * (2 * amounts[position] - 1)
            steps.append((amounts[4 + position], getattr(F, f"adjust_{name}"), factor))
        for _, adjust, factor in sorted(steps, key=lambda step: step[0]):
            x = adjust(x, factor)
    if u["Grayscale"][0] < augment.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if u["Blur"][0] < blur:
        side = size or crop.shape[-1]
        low, high = augment.blur_sigma
        sigma = (low + (high - low) * u["Blur"][1]) * side / 224
        radius = math.ceil(3 * high * side / 224)
        x = F.gaussian_blur(x, [2 * radius + 1] * 2, [sigma] * 2)
    if u["Solarize"][0] < solarize:
        # A blur's last digit may decide between 0.5 and what is below, which are the same.
        x = F.solarize(x, 0.5)
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
        (Augment(blur=0.5, solarize=0.5), 16),
        (Augment(blur=(1.0, 0.1), solarize=(0.0, 0.2), blur_sigma=(0.5, 9.0)), 32),
        (Augment(blur=(0.0, 1.0), solarize=(1.0, 0.0)), 16),
        (Augment(blur=(0.9, 0.1, 0.5), solarize=(0.1, 0.9, 0.5), local_crops=6), 16),
    ],
)
def test_every_image_is_what_torchvision_makes_of_it_alone(augment, size):
    crops, random_params = batch(60, size)
    views = augment_views(crops, random_params, augment)
    for view in range(2):
        assert views[view].dtype == torch.float32
        for i in range(60):
            expected = by_torchvision(crops[i, view], random_params[i, view], augment, view)
            # 1e-5 in 0..1 is 4.5e-5 after division by the standard deviation.
            assert torch.allclose(views[view][i].double(), expected, atol=4.5e-5), (view, i)


def test_every_local_view_is_too_with_the_full_views_blur():
    augment = Augment(blur=(0.0, 1.0, 0.7), solarize=(1.0, 0.0, 0.3), local_crops=3)
    augment = augment.model_copy(update={"blur_sigma": (2.0, 9.0)})
    crops, random_params = batch(40, 24, views=3)
    views = augment_views(crops, random_params, augment, full_size=56)
    assert len(views) == 3
    for view in range(3):
        assert views[view].shape == (40, 3, 24, 24)
        for i in range(40):
            expected = by_torchvision(crops[i, view], random_params[i, view], augment, 2, 56)
            assert torch.allclose(views[view][i].double(), expected, atol=4.5e-5), (view, i)


def test_no_local_crops_make_no_local_views():
    crops, random_params = batch(5, 4, views=0)
    assert augment_views(crops, random_params, Augment(), full_size=16) == []


def test_one_probability_is_that_of_every_view():
    crops, random_params = batch(30)
    one = augment_views(crops, random_params, Augment(blur=0.4, solarize=0.3))
    for shares in (2, 3):
        several = Augment(blur=(0.4,) * shares, solarize=(0.3,) * shares)
        views = augment_views(crops, random_params, several)
        assert all(torch.equal(a, b) for a, b in zip(one, views, strict=True))


def test_draws_of_what_came_later_do_not_touch_the_views_of_the_first_recipes():
    crops, random_params = batch(30)
    other = random_params.clone()
    other[..., 13:] = 0
    for augment in (Augment(), FULL):
        pair = augment_views(crops, random_params, augment), augment_views(crops, other, augment)
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def undone(view):
    return view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


@pytest.mark.parametrize("ops", [1, 2])
def test_a_strength_adds_rand_augment_before_the_normalization(ops):
    crops, random_params = batch(30)
    strength = torch.linspace(0, 1, 30)
    plain = augment_views(crops, random_params, FULL)
    boosted = augment_views(crops, random_params, FULL, strength=strength, ops=ops)
    for view in range(2):
        columns = list(augmentation.COLUMNS["RandAugment"])
        boost = random_params[:, view, columns]
        boost[:, 0] = random_params[:, 0, columns[0]]  # both views have the first one's magnitude
        images = undone(plain[view]).clamp(0, 1)
        expected = normalize(rand_augment(images, strength, boost, ops=ops))
        # A level of 256 is another where the last digit decides on it.
        apart = (boosted[view] - expected).abs().amax(dim=(1, 2, 3))
        assert (apart < 1e-4).sum() >= 26
        assert (boosted[view] - plain[view]).abs().amax(dim=(1, 2, 3)).gt(0.01).sum() > 8


def test_a_strength_of_zero_leaves_the_views_bit_by_bit():
    crops, random_params = batch(200, 16)
    plain = augment_views(crops, random_params, FULL)
    boosted = augment_views(crops, random_params, FULL, strength=torch.zeros(200), ops=2)
    assert all(torch.equal(a, b) for a, b in zip(plain, boosted, strict=True))


def test_local_views_are_boosted_by_the_strength_of_their_image():
    augment = Augment(local_crops=3)
    crops, random_params = batch(40, 12, views=3)
    strength = torch.arange(40) % 2 * 1.0
    plain = augment_views(crops, random_params, augment, full_size=28)
    boosted = augment_views(crops, random_params, augment, full_size=28, strength=strength, ops=2)
    for a, b in zip(plain, boosted, strict=True):
        assert torch.equal(a[::2], b[::2])
        assert not torch.equal(a[1::2], b[1::2])


def test_nothing_asks_for_a_value_of_the_batch():
    # On "meta" there are no values: what a GPU's host would have to wait for is an error there.
    crops, random_params = (tensor.to("meta") for tensor in batch(4))
    augment = Augment(blur=(1.0, 0.1, 0.5), solarize=(0.0, 0.2, 0.0), local_crops=2)
    strength = torch.empty(4, device="meta")
    views = augment_views(crops, random_params, augment, strength=strength, ops=2)
    views += augment_views(crops, random_params, augment, full_size=32, strength=strength, ops=2)
    assert [view.shape for view in views] == [(4, 3, 16, 16)] * 4


def recipe(**augment):
    data = {"source": "digits", "augment": augment}
    return make_recipe({"name": "x", "data": data, "method": {"name": "simclr"}}, source="x.yaml")


def test_a_recipe_takes_one_probability_or_one_for_each_view_and_prints_it():
    for blur in (0.5, 0, 1, (1.0, 0.1), [1, 0.1, "0.5"]):
        read = recipe(blur=blur)
        assert make_recipe(yaml.safe_load(recipe_text(read))) == read
    assert recipe(blur=[1, 0.1, "0.5"]).data.augment.blur == (1.0, 0.1, 0.5)
    assert recipe().data.augment.solarize == 0
    assert recipe(blur=(0.5, 0.1, 0.3), local_crops=2).data.augment.local_crops == 2
    assert recipe(blur=0.5, local_crops=2).data.augment.blur == 0.5


@pytest.mark.parametrize(
    "given", [1.5, -0.1, [0.5], [0.5] * 4, [0.5, 2], "often", None, [[1, 1]] * 2]
)
def test_other_probabilities_are_refused_in_one_sentence(given):
    with pytest.raises(RecipeError) as error:
        recipe(solarize=given)
    assert str(error.value) == (
        "x.yaml: data.augment.solarize: expected a probability in 0..1, or one for each view: [view 1, "
        f"view 2] or [view 1, view 2, local crops], got {given!r}"
    )


def test_two_probabilities_leave_local_crops_open_and_are_refused():
    with pytest.raises(RecipeError) as error:
        recipe(blur=[1.0, 0.1], local_crops=6)
    assert str(error.value) == (
        "x.yaml: data.augment: blur says [1.0, 0.1] for the two full views; local_crops is 6, so add "
        "a third for the local crops"
    )


def test_local_crops_are_refused_where_nothing_can_be_cut():
    for wrong, sentence in (
        ({"local_scale": [0.4, 0.05]}, "local_scale must ascend"),
        ({"local_scale": [0, 0]}, "local_scale must reach above 0"),
        ({"local_crops": -1}, "expected at least 0"),
        ({"local_size": 2}, "expected at least 4"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            recipe(**wrong)


def test_gray_black_and_saturated_pixels_have_no_special_way_out():
    levels = torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8)
    colors = torch.cartesian_prod(levels, levels, levels)
    crop = torch.cat([colors, colors.flip(0)])[:225].T.reshape(3, 15, 15)
    crops = crop.expand(200, 2, 3, 15, 15)
    _, random_params = batch(200, 4)
    augment = Augment(jitter=1.0, hue=0.5)
    views = augment_views(crops, random_params, augment)
    assert all(view.isfinite().all() for view in views)
    for i in range(40):
        expected = by_torchvision(crop, random_params[i, 0], augment)
        assert torch.allclose(views[0][i].double(), expected, atol=4.5e-5)


def test_the_portions_of_a_batch_do_not_change_it(monkeypatch):
    crops, random_params = batch(37)
    whole = augment_views(crops, random_params, FULL)
    monkeypatch.setattr(augmentation, "PORTION", 1)
    alone = augment_views(crops, random_params, FULL)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, alone, strict=True))


def test_an_image_does_not_depend_on_its_company():
    crops, random_params = batch(8)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    straight = augment_views(crops, random_params, FULL)
    turned = augment_views(crops[order], random_params[order], FULL)
    assert all(
        torch.allclose(a[order], b, atol=1e-6) for a, b in zip(straight, turned, strict=True)
    )


def test_every_image_has_a_draw_of_its_own():
    crops = torch.randint(0, 256, (1, 1, 3, 16, 16), dtype=torch.uint8).expand(64, 2, 3, 16, 16)
    _, random_params = batch(64)
    views = torch.cat(augment_views(crops, random_params, Augment(jitter=1.0, grayscale=0.0)))
    assert len({tuple(view.flatten()[:30].tolist()) for view in views}) == 128


def test_without_augmentation_a_view_is_the_normalized_crop():
    crops, random_params = batch(5)
    nothing = Augment(flip=0, jitter=0, grayscale=0, blur=0)
    views = augment_views(crops, random_params, nothing)
    for view in range(2):
        assert torch.allclose(views[view], normalize(crops[:, view]), atol=1e-6)


def test_probabilities_are_those_of_the_recipe():
    crops, random_params = batch(4000, 4)
    gray = undone(augment_views(crops, random_params, Augment(flip=0, jitter=0, grayscale=0.2))[0])
    share = ((gray[:, 0] - gray[:, 1]).abs().amax(dim=(1, 2)) < 1e-5).float().mean()
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 4000)
    flipped = augment_views(crops, random_params, Augment(flip=0.3, jitter=0, grayscale=0))[1]
    mirrored = normalize(crops[:, 1].flip(-1))
    share = (flipped - mirrored).abs().amax(dim=(1, 2, 3)).lt(1e-4).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_the_largest_draw_cannot_escape_a_probability_of_one():
    crops, random_params = batch(3)
    always = Augment(flip=1, jitter=0, grayscale=0)
    views = augment_views(crops, torch.full_like(random_params, 1 - 2**-24), always)
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
    _, random_params = batch(n, 4, seed=9)
    got = augment_views(crop.expand(n, 2, 3, 8, 8), random_params, Augment())[0]
    error = ((expected.var(dim=0) + got.var(dim=0)) / n).sqrt()
    # 192 correlated means: 4.5 standard errors; standard deviations within 8 percent.
    assert ((expected.mean(dim=0) - got.mean(dim=0)).abs() <= 4.5 * error).all()
    assert torch.allclose(expected.std(dim=0), got.std(dim=0), rtol=0.08)
    assert torch.allclose(
        expected.mean(dim=(2, 3)).std(dim=0), got.mean(dim=(2, 3)).std(dim=0), rtol=0.08
    )


def test_the_order_of_the_jitter_takes_all_24_orders_alike():
    _, random_params = batch(12_000, 4)
    order = random_params[:, 0, list(augmentation.COLUMNS["ColorJitter"][5:])].argsort(dim=1)
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 500).abs().max() < 4.5 * math.sqrt(500)


def test_autocast_does_not_coarsen_the_views():
    crops, random_params = batch(4)
    expected = augment_views(crops, random_params, FULL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = augment_views(crops, random_params, FULL)
    assert all(torch.equal(a, b) for a, b in zip(expected, views, strict=True))


def test_the_crops_are_not_written_to():
    crops, random_params = batch(4)
    before = crops.clone(), random_params.clone()
    augment_views(crops, random_params, FULL)
    assert torch.equal(crops, before[0])
    assert torch.equal(random_params, before[1])


def test_shapes_that_do_not_fit_are_named():
    crops, random_params = batch(4)
    with pytest.raises(ValueError, match=r"got \(4, 2, 3, 16, 16\) and \(3, 2, 25\)"):
        augment_views(crops, random_params[:3], FULL)
    with pytest.raises(ValueError, match=r"be \(N, 3, 3, S, S\) and .*got \(4, 2, 3, 16, 16\)"):
        augment_views(crops, random_params, Augment(local_crops=3), full_size=16)
    with pytest.raises(ValueError, match="ops must be 1 or 2, got 0"):
        augment_views(crops, random_params, FULL, strength=torch.ones(4), ops=0)
    with pytest.raises(ValueError, match=r"strength \(N,\)"):
        augment_views(crops, random_params, FULL, strength=torch.ones(3))
    with pytest.raises(ValueError, match=r"crops must be \(N, 2, 3, S, S\)"):
        augment_views(crops[:, :1], random_params, FULL)


def test_normalize_takes_bytes_and_floats_to_the_same_values():
    crops, _ = batch(2)
    floats = crops.double() / 255
    expected = F.normalize(floats[:, 0], list(MEAN), list(STD))
    assert torch.allclose(normalize(crops[:, 0]).double(), expected, atol=1e-6)
    assert torch.allclose(normalize(floats[:, 0]), expected)
    assert normalize(crops).shape == crops.shape


@pytest.mark.gpu
def test_rendering_never_waits_for_the_device():
    crops, random_params = (tensor.cuda() for tensor in batch(64, 32))
    augment = Augment(blur=(1.0, 0.1), solarize=(0.0, 0.2))
    expected = augment_views(crops.cpu(), random_params.cpu(), augment)
    strength = torch.linspace(0, 1, 64, device="cuda")
    boosted = augment_views(
        crops.cpu(), random_params.cpu(), augment, strength=strength.cpu(), ops=2
    )
    torch.cuda.set_sync_debug_mode("error")
    views = augment_views(crops, random_params, augment)
    views += augment_views(crops, random_params, augment, strength=strength, ops=2)
    torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(expected, views[:2], strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-4)
    for a, b in zip(boosted, views[2:], strict=True):
        # Steps (equalize, the nearest pixel) may fall to the other side.
        assert ((a - b.cpu()).abs() > 1e-4).float().mean() < 0.01


INVERT = """class Invert:
    params = 1

    def __init__(self, augment, view):
        self.p = augment.invert

    def __call__(self, images, u):
        return _choose(u[:, 0] < self.p, 1 - images, images)


# In the order of application"""


class WithInvert(Augment):
    """The recipe's settings with the field of the new operation."""

    invert: float = 0.0


@pytest.fixture
def with_invert(monkeypatch):
    """Module `augment` with one class more, in the middle, and an unchanged `datasets` on top of it."""
    source = Path(augmentation.__file__).read_text()
    source = source.replace("# In the order of application", INVERT, 1)
    source = source.replace(
        "(Flip, ColorJitter, Grayscale, ", "(Flip, Invert, ColorJitter, Grayscale, ", 1
    )
    module = types.ModuleType("sslgh.data.augment")
    exec(compile(source, "augment.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "sslgh.data.augment", module)
    spec = importlib.util.spec_from_file_location("datasets_on_top", datasets.__file__)
    on_top = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(on_top)
    return module, on_top


@pytest.mark.parametrize("local_crops", [0, 3])
def test_a_new_operation_is_a_class_a_name_and_a_field_and_leaves_earlier_runs_as_they_were(
    with_invert, local_crops
):
    module, on_top = with_invert
    assert module.NUM_PARAMS == augmentation.NUM_PARAMS + 1
    pixels = np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), dtype=np.uint8)
    images = ImageSet(pixels, None, (), tuple(map(str, range(9))))
    settings = {"flip": 1.0, "jitter": 0.0, "grayscale": 0.0, "local_crops": local_crops}
    keys = [SampleKey(epoch, 0, index) for epoch in range(20) for index in range(9)]

    def views(code, data, augment):
        dataset = data.PretrainDataset(images, augment, size=16, seed=3)
        samples = [dataset[key] for key in keys]
        crops, params, local_crops, local_params = (
            torch.stack(column) for column in list(zip(*samples, strict=True))[:4]
        )
        return code.augment_views(crops, params, augment) + code.augment_views(
            local_crops, local_params, augment, full_size=16
        )

    for more in ({}, {"jitter": 0.8, "blur": 0.5, "solarize": 0.5}):
        before = views(augmentation, datasets, Augment(**settings | more))
        after = views(module, on_top, WithInvert(**settings | more))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    plain = views(augmentation, datasets, Augment(**settings))
    inverted = views(module, on_top, WithInvert(**settings, invert=0.3))
    for a, b in zip(plain, inverted, strict=True):
        kept = (a == b).flatten(1).all(1)
        turned = torch.isclose(undone(b), 1 - undone(a), atol=1e-5).flatten(1).all(1)
        assert (kept ^ turned).all()
        assert 0.15 < turned.float().mean() < 0.45


def test_every_column_belongs_to_one_operation_and_is_drawn_once():
    columns = [column for found in augmentation.COLUMNS.values() for column in found]
    assert columns == list(range(augmentation.NUM_PARAMS))
    for local in (False, True):
        rng = np.random.default_rng(0)
        crop, params = augmentation.draw_params(rng, 4, local=local)
        numbers = np.concatenate((crop, params), axis=1)
        assert len(np.unique(numbers)) == numbers.size == 4 * (22 + 25)
