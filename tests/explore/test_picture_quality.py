"""Faults of pictures themselves, on drawn ones whose fault is known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from sslgh.explore.picture_quality import RULES, picture_faults, picture_values


def noise(width: int = 160, height: int = 120, low: int = 0, high: int = 255) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high + 1, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scene() -> Image.Image:
    """Squares of many colors: edges and flat parts, as a photo has."""
    small = np.random.default_rng(1).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((400, 320), Image.Resampling.NEAREST)


def faults(image: Image.Image) -> set[str]:
    values = {name: np.float32([value]) for name, value in picture_values(image).items()}
    return {name for name, mask in picture_faults(values).items() if mask[0]}


def test_an_ordinary_picture_has_no_fault() -> None:
    assert faults(scene()) == set()


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (noise(high=40), "dark"),
        (noise(low=250), "bright"),
        (scene().filter(ImageFilter.GaussianBlur(12)), "blurred"),
        (noise(200, 60), "tiny"),
        (noise(600, 100), "odd shape"),
        (Image.new("RGB", (200, 200), (90, 120, 60)), "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_found_in_a_picture_that_has_it(image, fault) -> None:
    assert fault in faults(image)


def test_a_blurred_picture_with_a_bright_border_is_blurred_too() -> None:
    framed = ImageOps.expand(scene().filter(ImageFilter.GaussianBlur(12)), 1, "white")
    assert "blurred" in faults(framed)


def test_every_rule_has_a_value() -> None:
    assert {rule.value for rule in RULES.values()} == set(picture_values(noise()))


def test_brightness_is_that_of_the_whole_picture_whatever_its_size() -> None:
    small, large = picture_values(scene()), picture_values(scene().resize((2000, 1600)))
    assert large["brightest"] == pytest.approx(small["brightest"], abs=0.02)
    assert large["darkness"] == pytest.approx(small["darkness"], abs=0.02)


def test_scores_are_those_of_the_definition() -> None:
    image = scene().resize((200, 160))
    pixels = np.asarray(image, dtype=np.float64) / 255
    bright = np.sqrt(
        0.241 * pixels[..., 0] ** 2 + 0.691 * pixels[..., 1] ** 2 + 0.068 * pixels[..., 2] ** 2
    )
    values = picture_values(image)
    assert values["brightest"] == pytest.approx(np.percentile(bright, 99), abs=1e-5)
    assert values["darkness"] == pytest.approx(1 - np.percentile(bright, 5), abs=1e-5)
    assert values["shape"] == pytest.approx(0.8)
    assert values["side"] == 160


def test_a_picture_that_was_not_read_has_no_fault() -> None:
    values = dict.fromkeys((rule.value for rule in RULES.values()), np.float32([np.nan]))
    assert not any(mask.any() for mask in picture_faults(values).values())
