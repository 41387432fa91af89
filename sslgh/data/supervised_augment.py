"""One random view of an image for supervised training: crop and flip, then what a policy adds.

Up to 64 pixels the view is CIFAR's, above it is ImageNet's:

============= ============================== =================================================
policy        up to 64                       above
============= ============================== =================================================
crop-flip     zero padding of 4, crop, flip  resized crop (area 0.08 to 1), flip
autoaugment   + CIFAR policy, Cutout         + ImageNet policy
randaugment   + RandAugment                  + color jitter of 0.4, RandAugment
none          the image as evaluation sees it
============= ============================== =================================================

An image of another size than the view is resized and cut as the weights that training starts from expect it.

crop-flip is that of the Logit Adjustment paper (arXiv:2007.07314, appendix D), autoaugment on CIFAR
is after the code of ProCo, and randaugment above 64 pixels after that of BCL (arXiv:2207.09052).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import v2

from sslgh.data.crop import CROP_PARAMS, random_box, resized_crop
from sslgh.preprocessing import Preprocessing, pixels
from sslgh.recipe.finetune import Policy

SMALL = 64  # the largest side that is treated like CIFAR's (pixels)
PADDING = 4
HOLE = 16  # side of Cutout's square (pixels); half of the image's where that is less
# ImageNet's mean color, as in BCL's code, where a rotation or shift leaves the image.
FILL = (124, 116, 104)


def random_view(
    image: Image.Image,
    preprocessing: Preprocessing,
    policy: Policy,
    generator: np.random.Generator,
    *,
    interpolation: str | None = None,
) -> NDArray[np.uint8]:
    """One random view, uint8 (3, S, S); crop and flip are the same whatever the policy adds.

    Args:
        image: RGB, of any size.
        preprocessing: S, and how evaluation resizes and cuts.
        policy: Augmentation.
        generator: Source of every random number.
        interpolation: Interpolation of the resized crop; None: that of evaluation.
    """
    if policy == "none":
        return pixels(preprocessing.crop(image))
    small = preprocessing.size <= SMALL
    if small:
        left, top = generator.integers(2 * PADDING + 1, size=2).tolist()
        crop = _shifted(image, preprocessing, left, top)
    else:
        filter_name = interpolation or preprocessing.interpolation
        numbers = generator.random(CROP_PARAMS).tolist()
        crop = _resized(image, preprocessing.size, numbers, filter_name)
    flipped = ImageOps.mirror(crop) if generator.random() < 0.5 else crop
    if policy == "crop-flip":
        return pixels(flipped)
    changed = _apply(_strong(policy, small), flipped, seed=int(generator.integers(2**63)))
    view = pixels(changed)
    return cut_out(view, generator) if small and policy == "autoaugment" else view


def weak_view(image: Image.Image, size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A view of the policy crop-flip, uint8 (3, S, S), as the ``gh-*`` protocols draw it.

    The protocols are older than the policies and draw in another order than ``random_view``; to change it
    would be a new version of the protocols.
    """
    flip, *params = generator.random(1 + CROP_PARAMS).tolist()
    if size <= SMALL:
        top, left = (int(u * (2 * PADDING + 1)) for u in params[:2])
        crop = _shifted(image, Preprocessing().at(size), left, top)
    else:
        crop = _resized(image, size, params, "bilinear")
    return pixels(ImageOps.mirror(crop) if flip < 0.5 else crop)


def cut_out(view: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """A black square at a random place (Cutout, arXiv:1708.04552); changes the view (3, S, S).

    Its center is any pixel, so that it may reach over the border and be smaller.

    Examples:
        >>> image = np.ones((3, 8, 8), dtype=np.uint8)
        >>> int((cut_out(image, np.random.default_rng(0)) == 0).sum())  # 4 x 4 in 3 channels
        48
    """
    side = view.shape[-1]
    half = min(HOLE, side // 2) // 2
    y, x = generator.integers(side, size=2).tolist()
    view[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return view


def _shifted(image: Image.Image, preprocessing: Preprocessing, left: int, top: int) -> Image.Image:
    padded, size = ImageOps.expand(preprocessing.crop(image), PADDING), preprocessing.size
    return padded.crop((left, top, left + size, top + size))


def _resized(image: Image.Image, size: int, params: list[float], interpolation: str) -> Image.Image:
    box = random_box(*image.size, params, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
    return Image.fromarray(resized_crop(image, box, size, interpolation).transpose(1, 2, 0))


def _apply(
    transform: Callable[[Image.Image], Image.Image], image: Image.Image, *, seed: int
) -> Image.Image:
    """A transform that draws from torch's global generator, which is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, and they are not put back.
        torch.default_generator.manual_seed(seed)
        return transform(image)


@cache
def _strong(policy: Policy, small: bool) -> Callable[[Image.Image], Image.Image]:
    if policy == "autoaugment":
        table = v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET
        transform: Callable[[Image.Image], Image.Image] = v2.AutoAugment(table, fill=FILL)
        return transform
    jitter = [] if small else [v2.ColorJitter(0.4, 0.4, 0.4)]
    # rand-n2-m10 as in BCL's code means timm's: two operations, each done with probability 1/2, at
    # level 10 of 10. torchvision's own does both always, and its level 10 is the third of its top.
    operation = v2.RandAugment(1, magnitude=10, num_magnitude_bins=11, fill=FILL)
    steps: Callable[[Image.Image], Image.Image] = v2.Compose(
        [*jitter, *[v2.RandomApply([operation], p=0.5)] * 2]
    )
    return steps
