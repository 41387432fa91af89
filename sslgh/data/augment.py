"""Augmentation of a batch as a list of operations, each image with random numbers of its own.

torchvision's v2 transforms draw once for a whole batch, which is wrong for contrastive learning. Here
the loader draws (``draw_params``) and the device applies (``augment_views``): every random number comes
as data, and nothing makes the host wait for the device. docs/augmentation.md shows how to add one.
Shape letters: N images, V views, S side (pixels), L local crops, s their side.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sslgh.data.crop import CROP_PARAMS
from sslgh.data.rand_augment import BOOST_PARAMS, MAGNITUDE, rand_augment
from sslgh.preprocessing import normalize
from sslgh.recipe.data import Augment

# On the CPU images are augmented in portions whose planes stay in its cache (pixels of one plane).
PORTION = 2**16


class View(NamedTuple):
    """Which view of an image an operation works on.

    Attributes:
        number: 0 or 1 for the full views, 2 for local crops.
        size: Side S of the full views (pixels).
    """

    number: int
    size: int

    def share(self, p: float | tuple[float, ...]) -> float:
        """Probability in this view, of one for all views or one per view."""
        return p[self.number] if isinstance(p, tuple) else p


class Operation(Protocol):
    """One step of the augmentation.

    Made from the recipe's settings and the view, and called with images in 0..1, float32 (N, 3, S, S),
    and uniform random numbers in [0, 1), float32 (N, ``params``). It returns images of the same shape.

    Attributes:
        params: Random numbers that it needs per image.
        p: Probability of changing an image; at 0 it is left out.
    """

    params: int
    p: float

    def __init__(self, augment: Augment, view: View) -> None: ...
    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Change the images that their random numbers choose."""
        ...


class Flip:
    """Horizontal flip."""

    params = 1

    def __init__(self, augment: Augment, view: View) -> None:
        self.p = augment.flip

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Flip the chosen images."""
        return _choose(u[:, 0] < self.p, images.flip(-1), images)


class ColorJitter:
    """Brightness, contrast, saturation and hue, in an order of the image's own.

    Random numbers: whether, four strengths, four places in the order.
    """

    params = 9

    def __init__(self, augment: Augment, view: View) -> None:
        self.p = augment.jitter
        self.strengths = (augment.brightness, augment.contrast, augment.saturation)
        self.hue = augment.hue

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Jitter the colors of the chosen images."""
        # Brightness, contrast and saturation are blends with black, the mean gray and the gray image,
        # cheap enough to compute three of them before the hue and three after it. Those that fall to
        # the other side get the factor 1, so the expensive turn of the hue is done once.
        chosen, order = u[:, 0] < self.p, u[:, 5:]
        place, kind = order[:, :3].sort(dim=1)
        factor = torch.stack(
            [_between(u[:, 1 + i], 1 - s, 1 + s) for i, s in enumerate(self.strengths)], dim=1
        ).gather(1, kind)
        one = torch.ones_like(factor)
        factor = torch.where(chosen[:, None], factor, one)
        if self.hue == 0:
            return _blends(images, kind, factor)
        before = place < order[:, 3:]
        turn = torch.where(chosen, _between(u[:, 4], -self.hue, self.hue), one[:, 0] * 0)
        x = _blends(images, kind, torch.where(before, factor, one))
        x = _turn_hue(x, turn)
        return _blends(x, kind, torch.where(before, one, factor))


class Grayscale:
    """The image without its colors."""

    params = 1

    def __init__(self, augment: Augment, view: View) -> None:
        self.p = augment.grayscale

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Gray the chosen images."""
        return _choose(u[:, 0] < self.p, _gray(images), images)


class Blur:
    """Gaussian blur with each image's own sigma, separable, mirrored at the border.

    Sigma is given at 224 pixels and shrinks with the full view's size. The kernel reaches three of
    the largest sigmas; an image that is not blurred gets the kernel 0 1 0.
    """

    params = 2

    def __init__(self, augment: Augment, view: View) -> None:
        self.p = view.share(augment.blur)
        self.sigma = augment.blur_sigma
        self.scale = view.size / 224

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Blur the chosen images."""
        x, side = images, images.shape[-1]
        radius = min(math.ceil(3 * self.sigma[1] * self.scale), side - 1)
        sigma = _between(u[:, 1], *self.sigma) * self.scale
        offsets = torch.arange(-radius, radius + 1, device=x.device)
        kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
        kernel = torch.where(u[:, :1] < self.p, kernel, (offsets == 0).float())
        # Shifted sums instead of a grouped convolution: faster on CPU, and autocast leaves them alone.
        for dim, border in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
            wide = pad(x, border, mode="reflect")
            x = wide.narrow(dim, 0, side) * _column(kernel[:, 0])
            for tap in range(1, 2 * radius + 1):
                x = x.addcmul_(wide.narrow(dim, tap, side), _column(kernel[:, tap]))
        return x


class Solarize:
    """What is 1/2 or more is inverted."""

    params = 1

    def __init__(self, augment: Augment, view: View) -> None:
        self.p = view.share(augment.solarize)

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Solarize the chosen images."""
        return _choose(u[:, 0] < self.p, torch.minimum(images, 1 - images), images)


# In the order of application (BYOL's, arXiv:2006.07733 appendix B, and lightly's).
AUGMENTATION: tuple[type[Operation], ...] = (Flip, ColorJitter, Grayscale, Blur, Solarize)


# Columns of each operation among a view's random numbers; those of RandAugment come last.
_WIDTHS = {op.__name__: op.params for op in AUGMENTATION} | {"RandAugment": BOOST_PARAMS}
_ENDS = accumulate(_WIDTHS.values())
COLUMNS = {name: range(end - _WIDTHS[name], end) for name, end in zip(_WIDTHS, _ENDS, strict=True)}
NUM_PARAMS = COLUMNS["RandAugment"].stop
# Columns in the order of drawing. The order of the first operations is older than this list. Columns of
# new ones are drawn last, so that the numbers of the others, and earlier runs, stay as they were.
_JITTER = COLUMNS["ColorJitter"]
_FIRST = [*COLUMNS["Flip"], _JITTER[0], *COLUMNS["Grayscale"], *COLUMNS["Blur"], *_JITTER[1:]]
_SECOND = [*COLUMNS["Solarize"], *COLUMNS["RandAugment"]]
_NEW = [column for column in range(NUM_PARAMS) if column not in {*_FIRST, *_SECOND}]
_PLACES = CROP_PARAMS + np.argsort([*_FIRST, *_SECOND, *_NEW])  # of the columns, when drawn
# Numbers per view that are drawn for all views at a time; those of the crop come first.
_BLOCKS = (CROP_PARAMS + len(_FIRST), len(_SECOND), *[1] * len(_NEW))
_LOCAL_BLOCKS = (CROP_PARAMS + len(_FIRST) + len(_SECOND), *[1] * len(_NEW))


def draw_params(
    rng: np.random.Generator, num_views: int, *, local: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Uniform random numbers in [0, 1) of an image's V views, or its V local crops, from its generator.

    Float32: those of the crops (V, ``CROP_PARAMS``), and of the augmentation (V, ``NUM_PARAMS``).
    """
    widths = _LOCAL_BLOCKS if local else _BLOCKS
    blocks = [rng.random((num_views, width), dtype=np.float32) for width in widths]
    drawn = np.concatenate(blocks, axis=1)
    return drawn[:, :CROP_PARAMS], drawn.take(_PLACES, axis=1)


def augment_views(
    crops: Tensor,
    params: Tensor,
    augment: Augment,
    *,
    full_size: int | None = None,
    strength: Tensor | None = None,
    ops: int = 1,
    normalize: Callable[[Tensor], Tensor] = normalize,
) -> list[Tensor]:
    """The V views of a batch, ready for the network, each float32 (N, 3, S, S).

    The operations of ``AUGMENTATION``, RandAugment if a strength is given, normalization. Each
    operation before RandAugment is torchvision's of that name on float images (no rounding to 8 bits).

    Args:
        crops: uint8 (N, V, 3, S, S); V is 2, or ``augment.local_crops`` for local crops.
        params: Uniform random numbers in [0, 1), float32 (N, V, ``NUM_PARAMS``), on the same device.
        augment: Probabilities and strengths.
        full_size: For local crops the side of the full views (pixels), whose sigma a blur has, as in
            SwAV and DINO. None: these are the full views.
        strength: Strength of RandAugment, float32 (N,) in [0, 1], on the same device; None: without.
        ops: Operations of RandAugment per image, 1 or 2; another number is a ValueError, as are
            shapes that do not fit together.
        normalize: Normalization of images in 0..1, for weights that were trained with another than ImageNet's.
    """
    count = 2 if full_size is None else augment.local_crops
    if crops.shape[1:3] != (count, 3) or params.shape != (len(crops), count, NUM_PARAMS):
        raise _wrong_shapes(crops, params, count)
    if count == 0:
        return []
    apply = partial(_apply, augment=augment)
    if full_size is None:
        size = crops.shape[-1]
        views = [apply(crops[:, i], params[:, i], view=View(i, size)) for i in (0, 1)]
    else:
        x, u = (each.transpose(0, 1).flatten(0, 1) for each in (crops, params))
        views = list(apply(x, u, view=View(2, full_size)).chunk(count))
    views = views if strength is None else _boost(views, params, strength, ops)
    return [normalize(view) for view in views]


def _wrong_shapes(crops: Tensor, params: Tensor, count: int) -> ValueError:
    return ValueError(
        f"crops must be (N, {count}, 3, S, S) and params (N, {count}, {NUM_PARAMS}), got "
        f"{tuple(crops.shape)} and {tuple(params.shape)}"
    )


def _apply(crops: Tensor, params: Tensor, *, augment: Augment, view: View) -> Tensor:
    """The operations that the recipe asks for, on uint8 crops (N, 3, S, S) of one kind of view."""
    operations = [operation(augment, view) for operation in AUGMENTATION]
    portion = max(1, PORTION // crops[0, 0].numel()) if crops.device.type == "cpu" else len(crops)
    parts = []
    for start in range(0, len(crops), portion):
        rows = slice(start, start + portion)
        x = crops[rows].float() / 255
        for operation in operations:
            if operation.p > 0:
                columns = COLUMNS[type(operation).__name__]
                x = operation(x, params[rows, columns.start : columns.stop])
        parts.append(x)
    return torch.cat(parts)


def _boost(images: list[Tensor], params: Tensor, strength: Tensor, ops: int) -> list[Tensor]:
    """RandAugment of V views (N, 3, S, S), with random numbers (N, V, D)."""
    u = params[..., COLUMNS["RandAugment"].start :].clone()
    # Views of an image share the magnitude: the official code draws it when a transform is built.
    u[..., MAGNITUDE] = u[:, :1, MAGNITUDE]
    # All views at once: a portion would leave one or two images for each operation.
    strengths, u = strength.repeat(len(images)), u.transpose(0, 1).flatten(0, 1)
    boosted = rand_augment(torch.cat(images), strengths, u, ops=ops)
    return list(boosted.chunk(len(images)))


def _column(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return values[:, None, None, None]


def _choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` for the images of the mask (N,), exactly: on CPU three times as fast as torch.where."""
    chosen = _column(mask).float()
    return torch.addcmul(no * (1 - chosen), yes, chosen)


def _gray(x: Tensor) -> Tensor:
    """Luma (N, 1, S, S), with torchvision's weights."""
    r, g, b = x.unbind(1)
    return (r * 0.2989 + g * 0.587 + b * 0.114).unsqueeze(1)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _blends(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Three blends in a row, of each image's own kind (N, 3) and factor (N, 3)."""
    for step in range(3):
        f, k = _column(factor[:, step]), _column(kind[:, step])
        gray = _gray(x)
        mean = gray.mean(dim=(1, 2, 3), keepdim=True)
        # kind 0: brightness (black), 1: contrast (mean gray), 2: saturation (gray)
        other = torch.addcmul(mean * (k == 1) * (1 - f), gray, (k == 2) * (1 - f))
        x = torch.addcmul(other, x, f).clamp_(0, 1)
    return x


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of the HSV hexcone by ``turn`` (share of the circle, (N,)).

    With V = max, chroma = max - min and hue H in sixths, each channel is
    V - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + H) mod 6, n = 5, 3, 1 for R, G, B: the same map as
    torchvision's table of six cases, without its gathers.
    """
    r, g, b = x.unbind(1)
    # Pairwise, not aminmax(dim=1), and floor, not remainder: ten times as fast on CPU.
    high = torch.maximum(torch.maximum(r, g), b)
    chroma = high - torch.minimum(torch.minimum(r, g), b)
    divisor = chroma.clamp_min(1e-12)  # a gray has no hue: its numerators are 0
    sixth = torch.where(
        high == r,
        (g - b) / divisor,
        torch.where(high == g, (b - r) / divisor + 2, (r - g) / divisor + 4),
    )
    sixth = sixth + 6 * turn[:, None, None]
    planes = []
    for n in (5, 3, 1):
        k = sixth + n
        k = k.sub_((k / 6).floor_(), alpha=6)
        planes.append(torch.addcmul(high, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1))
    return torch.stack(planes, dim=1)
