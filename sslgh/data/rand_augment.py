"""RandAugment on a batch, each image with a strength of its own.

The boost of Boosted Contrastive Learning (Zhou et al., ICML 2022), after the code of its authors and
of GH: 15 operations with doubled ranges, magnitudes on RandAugment's scale of 0..30. torchvision's
RandAugment draws once for a whole batch, with other operations and ranges. Every random number comes
in as data, and on a GPU nothing here makes the host wait. Shape letters: N images, S side (pixels).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad
from torchvision.transforms.v2 import functional

OPERATIONS = (
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
    "contrast",
    "color",
    "brightness",
    "sharpness",
    "solarize",
    "posterize",
    "autocontrast",
    "invert",
    "equalize",
    "cutout",
)
CODE = {name: code for code, name in enumerate(OPERATIONS)}

# What an operation does at magnitude 30, in the units of the official code's list (its "max").
SHEAR, TRANSLATE, ROTATE = 0.6, 0.66, math.radians(60)
SOLARIZE, CUTOUT = 110 / 255, 0.4
CUTOUT_COLOR = (125 / 255, 123 / 255, 114 / 255)

MOST_OPS = 2
# Columns of the random numbers: the magnitude (two operations), then five for each operation.
MAGNITUDE = 0
CHOICE, DONE, SIGN, ACROSS, DOWN = range(5)
BOOST_PARAMS = 1 + 5 * MOST_OPS


def rand_augment(images: Tensor, strength: Tensor, random_params: Tensor, *, ops: int) -> Tensor:
    """RandAugment whose probability and magnitude follow a strength of each image.

    ``ops`` times, with replacement, one of the 15 operations is chosen, and done with probability
    ``strength``, at magnitude m. One operation: m = 10 + 20 strength. Two: m = 5 + 25 strength U,
    one U in [0, 1) for both. So has it the code of GH's authors for CIFAR; theirs for ImageNet-LT, and
    a version of BCL's repository, have 30 strength U instead.

    As in that code a parameter grows with m from the start of its range to the end, though a higher
    threshold of solarize or more bits of posterize do less: shear 0..0.6, translation 0..0.66 of the
    side, rotation 0..60 degrees (either sign), contrast, color, brightness, sharpness 0.1..1.9,
    solarize 0..110 (of 255), posterize 4..8 bits, cutout 0..0.4 of the side. Shears, translations and
    rotations are PIL's: nearest pixel, black from outside, shears about the upper left corner.
    The rest is torchvision's on float images; only equalize rounds to 8 bits.

    Args:
        images: In 0..1, float32 (N, 3, S, S). Not written to.
        strength: In [0, 1], shape (N,); not checked. At 0 an image comes back bit by bit.
        random_params: Uniform in [0, 1), shape (N, ``BOOST_PARAMS``).
        ops: Operations of an image, 1 or 2.

    Returns:
        The same shape, in 0..1.

    Raises:
        ValueError: If the shapes do not fit together or ``ops`` is neither.
    """
    n = len(images)
    if images.ndim != 4 or strength.shape != (n,) or random_params.shape != (n, BOOST_PARAMS):
        raise ValueError(
            f"images must be (N, 3, S, S), strength (N,) and random_params (N, {BOOST_PARAMS}), got "
            f"{tuple(images.shape)}, {tuple(strength.shape)} and {tuple(random_params.shape)}"
        )
    if ops not in (1, MOST_OPS):
        raise ValueError(f"ops must be 1 or {MOST_OPS}, got {ops}")
    magnitude = 10 + 20 * strength if ops == 1 else 5 + 25 * strength * random_params[:, MAGNITUDE]
    x = images.clone()
    for number in range(ops):
        u = random_params[:, 1 + 5 * number : 6 + 5 * number]
        # -1 where nothing is done. A number times 15 may round up to 15.
        operation = (u[:, CHOICE] * len(OPERATIONS)).long().clamp_max(len(OPERATIONS) - 1)
        operation = torch.where(u[:, DONE] < strength, operation, -1)
        x = _operate(x, operation, magnitude / 30, u)
    return x


def _operate(x: Tensor, operation: Tensor, level: Tensor, u: Tensor) -> Tensor:
    """One operation on each image: its code (N,), its level in 0..1 (N,) and its numbers (N, 5)."""
    kinds: tuple[tuple[tuple[str, ...], Callable[..., Tensor], tuple[Tensor, ...]], ...] = (
        (OPERATIONS[:5], _move, (operation, torch.where(u[:, SIGN] < 0.5, level, -level))),
        (OPERATIONS[5:9], _blend, (operation, 0.1 + 1.8 * level)),
        (("solarize",), _solarize, (level * SOLARIZE,)),
        (("posterize",), _posterize, (4 + 4 * level,)),
        (("autocontrast",), _stretch, ()),
        (("invert",), functional.invert_image, ()),
        (("equalize",), functional.equalize_image, ()),
        (("cutout",), _cut_out, (level * CUTOUT, u[:, ACROSS], u[:, DOWN])),
    )
    change_chosen = _change_rows if x.device.type == "cpu" else _change_all
    for names, change, values in kinds:
        chosen = (operation >= CODE[names[0]]) & (operation <= CODE[names[-1]])
        x = change_chosen(x, chosen, change, values)
    return x


def _change_rows(
    x: Tensor, chosen: Tensor, change: Callable[..., Tensor], values: tuple[Tensor, ...]
) -> Tensor:
    """Change the chosen images, in place: where looking at the choice costs nothing."""
    rows = chosen.nonzero()[:, 0]
    return x.index_copy_(0, rows, change(x[rows], *(v[rows] for v in values))) if len(rows) else x


def _change_all(
    x: Tensor, chosen: Tensor, change: Callable[..., Tensor], values: tuple[Tensor, ...]
) -> Tensor:
    """Change all images and keep the chosen: a GPU is faster at that than a host at waiting for it."""
    return torch.where(_column(chosen), change(x, *values), x)


def _column(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return values[:, None, None, None]


def _move(x: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """Shear, translate or rotate: one affine map an image, from output to input, as PIL has it."""
    side = x.shape[-1]

    def amount(name: str, most: float) -> Tensor:
        return ((operation == CODE[name]) * level * most)[:, None, None]

    angle = amount("rotate", ROTATE)
    centers = torch.arange(side, device=x.device) + 0.5
    across, down = centers[None, None, :], centers[None, :, None]
    h = side / 2
    # cos is 1 and sin 0 where nothing turns, so that the sum is the one map of each image. No
    # affine_grid: it multiplies matrices, which autocast takes to bfloat16.
    source_x = (across - h) * angle.cos() - (down - h) * angle.sin() + h
    source_x = source_x + down * amount("shear-x", SHEAR) + side * amount("translate-x", TRANSLATE)
    source_y = (across - h) * angle.sin() + (down - h) * angle.cos() + h
    source_y = (
        source_y + across * amount("shear-y", SHEAR) + side * amount("translate-y", TRANSLATE)
    )
    grid = torch.stack([source_x, source_y], dim=-1) / h - 1
    return grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Contrast, color, brightness or sharpness: between the image and what has nothing of it."""
    gray = functional.rgb_to_grayscale_image(x)
    mean = gray.mean(dim=(1, 2, 3), keepdim=True)
    kind = _column(operation)
    other = torch.where(kind == CODE["contrast"], mean, gray * (kind == CODE["color"]))
    other = torch.where(kind == CODE["sharpness"], _smooth(x), other)
    return torch.lerp(other, x, _column(factor)).clamp_(0, 1)


def _smooth(x: Tensor) -> Tensor:
    """PIL's SMOOTH: the mean of 3 x 3 pixels with the center five times; the border stays.

    Shifted sums instead of a convolution, which autocast would take to bfloat16.
    """
    side = x.shape[-1]
    if side < 3:
        return x
    inner = x[..., 1:-1, 1:-1]
    columns = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    total = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    return x + pad((total + 4 * inner) / 13 - inner, (1, 1, 1, 1))


def _solarize(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(x >= _column(threshold), 1 - x, x)


def _posterize(x: Tensor, bits: Tensor) -> Tensor:
    levels = _column(bits.floor().exp2())
    return torch.minimum((x * levels).floor_(), levels - 1) / levels


def _stretch(x: Tensor) -> Tensor:
    """Autocontrast: each channel from 0 to 1, but for one of a single value."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), x)


def _cut_out(x: Tensor, share: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """A rectangle of ImageNet's mean color about any point, as the official code and PIL draw it.

    It starts where its center minus half its width does, or at the border and then as wide, and it
    holds the pixel that it ends in.
    """
    side = x.shape[-1]
    pixel = torch.arange(side, device=x.device)

    def inside(center: Tensor) -> Tensor:
        start = (center * side - share * side / 2).clamp_min(0).floor()[:, None]
        return (pixel >= start) & (pixel <= start + share[:, None] * side)

    hole = inside(down)[:, None, :, None] & inside(across)[:, None, None, :]
    planes = [
        plane.masked_fill(hole[:, 0], value)
        for plane, value in zip(x.unbind(1), CUTOUT_COLOR, strict=True)
    ]
    return torch.stack(planes, dim=1)
