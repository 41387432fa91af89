"""Flip, color jitter, grayscale, blur and solarization of a batch, each image with draws of its own.

torchvision's v2 transforms draw once for a whole batch, which is wrong for contrastive learning. Here
every random number comes in as data, so that nothing in this file is random, and nothing in it makes
the host wait for the device. Shape letters: N images, S side (pixels), L local crops, s their side.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from sslgh.data.rand_augment import BOOST_DRAWS, MAGNITUDE, rand_augment
from sslgh.recipe.data import Augment

# ImageNet's statistics in RGB, the ones torchvision's and timm's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Columns of the draws: what happens, how strongly, and at which moment of the color jitter.
FLIP, JITTER, GRAY, BLUR, SIGMA = range(5)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(5, 9)
MOMENTS = slice(9, 13)
SOLARIZE = 13
BOOST = slice(14, 14 + BOOST_DRAWS)
NUM_DRAWS = 14 + BOOST_DRAWS
# Draws of the first recipes: later ones are drawn after them, so that those runs stay as they were.
FIRST_DRAWS = 13

# Images are taken in portions whose planes stay in a CPU's cache (pixels of one plane).
PORTION = 2**16


def normalize(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation, channel by channel.

    Args:
        images: uint8 in 0..255 or float in 0..1, shape (..., 3, H, W).

    Returns:
        float32 (float64 for float64), the same shape.

    Examples:
        >>> normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([2.2489, 2.4286, 2.6400])
    """
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    channels = zip(scaled.unbind(-3), MEAN, STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=-3)


def augment_views(
    crops: Tensor,
    random_params: Tensor,
    augment: Augment,
    *,
    strength: Tensor | None = None,
    ops: int = 1,
) -> list[Tensor]:
    """The two full views of a batch, ready for the network.

    Flip; with probability ``jitter`` brightness, contrast, saturation and hue in an order of the
    image's own; grayscale; blur; solarization of what is 1/2 or more (BYOL's order, arXiv:2006.07733
    appendix B, and lightly's); RandAugment where a strength is given; normalization. Each operation
    before RandAugment is torchvision's of that name on float images (no rounding to 8 bits).

    Args:
        crops: uint8 (N, 2, 3, S, S).
        random_params: Uniform in [0, 1), float32 (N, 2, ``NUM_DRAWS``), on the same device.
        augment: Probabilities and strengths.
        strength: Of ``rand_augment``, float32 (N,) in [0, 1], on the same device; None: without it.
        ops: Of ``rand_augment``, 1 or 2.

    Returns:
        Two tensors, float32 (N, 3, S, S).

    Raises:
        ValueError: If the shapes do not fit together or ``ops`` is neither.
    """
    if crops.shape[1:3] != (2, 3) or random_params.shape != (len(crops), 2, NUM_DRAWS):
        raise ValueError(
            f"crops must be (N, 2, 3, S, S) and draws (N, 2, {NUM_DRAWS}), got {tuple(crops.shape)} "
            f"and {tuple(random_params.shape)}"
        )
    return _render_all(
        crops,
        random_params,
        augment,
        places=(0, 1),
        size=crops.shape[-1],
        strength=strength,
        ops=ops,
    )


def augment_local_views(
    local_crops: Tensor,
    local_draws: Tensor,
    augment: Augment,
    *,
    size: int,
    strength: Tensor | None = None,
    ops: int = 1,
) -> list[Tensor]:
    """The local views of a batch, in the way of ``augment_views``.

    Args:
        local_crops: uint8 (N, L, 3, s, s), L being ``augment.local_crops``.
        local_draws: Uniform in [0, 1), float32 (N, L, ``NUM_DRAWS``), on the same device.
        augment: Probabilities and strengths.
        size: S of the full views (pixels): a blur has their sigma in pixels, as in SwAV and DINO.
        strength: As for ``augment_views``.
        ops: As for ``augment_views``.

    Returns:
        L tensors, float32 (N, 3, s, s); none if L is 0.

    Raises:
        ValueError: If the shapes do not fit together or ``ops`` is neither 1 nor 2.
    """
    count = augment.local_crops
    if local_crops.shape[1:3] != (count, 3) or local_draws.shape != (
        len(local_crops),
        count,
        NUM_DRAWS,
    ):
        raise ValueError(
            f"local_crops must be (N, {count}, 3, s, s) and local_draws (N, {count}, {NUM_DRAWS}), got "
            f"{tuple(local_crops.shape)} and {tuple(local_draws.shape)}"
        )
    if count == 0:
        return []
    return _render_all(
        local_crops,
        local_draws,
        augment,
        places=(2,) * count,
        size=size,
        strength=strength,
        ops=ops,
    )


def _render_all(
    crops: Tensor,
    random_params: Tensor,
    augment: Augment,
    *,
    places: tuple[int, ...],
    size: int,
    strength: Tensor | None,
    ops: int,
) -> list[Tensor]:
    """The V views of crops (N, V, 3, s, s), each with its place among the shares of the recipe."""
    images = crops.transpose(0, 1).flatten(0, 1)
    uniform = random_params.transpose(0, 1).flatten(0, 1)
    blurred = _chosen(uniform[:, BLUR], augment.blur, places)
    solarized = _chosen(uniform[:, SOLARIZE], augment.solarize, places)
    portion = (
        max(1, PORTION // images[0, 0].numel()) if images.device.type == "cpu" else len(images)
    )
    parts = []
    for start in range(0, len(images), portion):
        rows = slice(start, start + portion)
        x = _flip_and_color(images[rows], uniform[rows], augment)
        if blurred is not None:
            x = _blur(x, uniform[rows], blurred[rows], augment, size)
        if solarized is not None:
            x = _choose(solarized[rows], torch.minimum(x, 1 - x), x)  # 1 - x from 1/2 on
        parts.append(x if strength is not None else normalize(x))
    views = torch.cat(parts)
    if strength is not None:
        # All at once: of a portion each operation would get an image or two.
        strength = strength.repeat(len(places))
        views = normalize(rand_augment(views, strength, _boost_draws(random_params), ops=ops))
    return list(views.chunk(len(places)))


def _chosen(u: Tensor, share: float | tuple[float, ...], places: tuple[int, ...]) -> Tensor | None:
    """Which of the images (V * N,) it happens to, view by view; None where it happens to none."""
    shares = [share[place] if isinstance(share, tuple) else share for place in places]
    if not any(shares):
        return None
    return torch.cat([part < p for part, p in zip(u.chunk(len(places)), shares, strict=True)])


def _boost_draws(random_params: Tensor) -> Tensor:
    """Draws for ``rand_augment``, (V * N, B); views of an image share the magnitude's.

    So they do in the official code, which draws it when the image's transform is built.
    """
    boost = random_params[..., BOOST].clone()
    boost[..., MAGNITUDE] = boost[:, :1, MAGNITUDE]
    return boost.transpose(0, 1).flatten(0, 1)


def _flip_and_color(images: Tensor, u: Tensor, augment: Augment) -> Tensor:
    """uint8 (N, 3, S, S) and draws (N, D) to images in 0..1, flipped, jittered and grayed."""
    x = images.float() / 255
    x = _choose(u[:, FLIP] < augment.flip, x.flip(-1), x)
    if augment.jitter > 0:
        x = _jitter(x, u, augment)
    if augment.grayscale > 0:
        x = _choose(u[:, GRAY] < augment.grayscale, _gray(x), x)
    return x


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


def _jitter(x: Tensor, u: Tensor, augment: Augment) -> Tensor:
    """Color jitter; every image orders the four operations by its own four moments.

    Brightness, contrast and saturation are blends with black, the mean gray and the gray image, cheap
    enough to compute three of them before the hue and three after it. Those that fall to the other
    side get the factor 1, so the expensive turn of the hue is done once.
    """
    chosen = u[:, JITTER] < augment.jitter
    moments = u[:, MOMENTS]
    moment, kind = moments[:, :3].sort(dim=1)
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    factor = torch.stack(
        [_between(u[:, BRIGHTNESS + i], 1 - s, 1 + s) for i, s in enumerate(strengths)], dim=1
    ).gather(1, kind)
    one = torch.ones_like(factor)
    factor = torch.where(chosen[:, None], factor, one)
    if augment.hue == 0:
        return _blends(x, kind, factor)
    before = moment < moments[:, 3:]
    turn = torch.where(chosen, _between(u[:, HUE], -augment.hue, augment.hue), one[:, 0] * 0)
    x = _blends(x, kind, torch.where(before, factor, one))
    x = _turn_hue(x, turn)
    return _blends(x, kind, torch.where(before, one, factor))


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


def _blur(x: Tensor, u: Tensor, blurred: Tensor, augment: Augment, size: int) -> Tensor:
    """Gaussian blur with each image's own sigma, separable, mirrored at the border.

    Sigma is given at 224 pixels and shrinks with the full view's size. The kernel reaches three of
    the largest sigmas; an image that is not blurred gets the kernel 0 1 0.
    """
    side = x.shape[-1]
    scale = size / 224
    radius = min(math.ceil(3 * augment.blur_sigma[1] * scale), side - 1)
    sigma = _between(u[:, SIGMA], *augment.blur_sigma) * scale
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    kernel = torch.where(blurred[:, None], kernel, (offsets == 0).float())
    # Shifted sums instead of a grouped convolution: faster on CPU, and autocast leaves them alone.
    for dim, border in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        wide = pad(x, border, mode="reflect")
        x = wide.narrow(dim, 0, side) * _column(kernel[:, 0])
        for tap in range(1, 2 * radius + 1):
            x = x.addcmul_(wide.narrow(dim, tap, side), _column(kernel[:, tap]))
    return x
