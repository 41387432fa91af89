"""What is done to an image before a backbone sees it; it belongs to the weights.

Shapes: N images, H x W pixels, S side of the network's input (pixels).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

# ImageNet statistics, for torchvision's weights and for training from scratch.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# From so many sides of the input on only the part that is kept is resized: the same pixels but for rounding.
LONGEST = 32

Channels = tuple[float, float, float]


class Preprocessing(NamedTuple):
    """Size, crop and normalization of the images that weights expect.

    Callable on a PIL image, which gives (3, S, S), and on uint8 pixels (N, 3, S, S), which are only normalized.

    Attributes:
        size: S.
        crop_of: Sides of the crop and of the resized short side, such as (224, 256); only their ratio matters.
        interpolation: A key of `FILTERS`.
        squash: Whether to resize to a square, ignoring the aspect ratio.
        mean: Mean per channel, of values from 0 to 1.
        std: Standard deviation per channel.

    Examples:
        >>> ours = Preprocessing()
        >>> ours(Image.new("RGB", (500, 300))).shape
        torch.Size([3, 224, 224])
        >>> ours.at(32).resize
        37
    """

    size: int = 224
    crop_of: tuple[int, int] = (224, 256)
    interpolation: str = "bilinear"
    squash: bool = False
    mean: Channels = MEAN
    std: Channels = STD

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """The input that a network expects, from a PIL image or from pixels of the right size."""
        if isinstance(image, Tensor):
            return self.normalize(image)
        return self.normalize(torch.from_numpy(pixels(self.crop(image.convert("RGB")))))

    def at(self, size: int) -> "Preprocessing":
        """A copy for another input size (pixels)."""
        return self._replace(size=size)

    @property
    def resize(self) -> int:
        """Length of the short side from which the central square is cut (pixels)."""
        return round(self.size * self.crop_of[1] / self.crop_of[0])

    @classmethod
    def of(cls, backbone: nn.Module) -> "Preprocessing":
        """Preprocessing of a backbone that `sslgh.models` has built; of any other, ImageNet's."""
        found = getattr(backbone, "preprocessing", None)
        return found if isinstance(found, cls) else cls()

    def crop(self, image: Image.Image) -> Image.Image:
        """The image for evaluation, S x S: resized, then the central square.

        An image of S x S is left alone; one whose short side is under S is enlarged to S and loses only what makes
        it longer than wide. Libraries enlarge these too far and cut their border off.
        """
        size = self.size
        if image.size == (size, size):
            return image
        width, height = image.size
        short = size if min(width, height) < size else self.resize
        if self.squash:
            width, height = short, short
        elif width <= height:
            width, height = short, int(short * height / width)
        else:
            width, height = int(short * width / height), short
        left, top = round((width - size) / 2), round((height - size) / 2)
        if max(width, height) > LONGEST * size:  # a line of pixels would become gigabytes
            across, along = image.width / width, image.height / height
            right, bottom = min((left + size) * across, image.width), (top + size) * along
            box = (left * across, top * along, right, min(bottom, image.height))
            return image.resize((size, size), FILTERS[self.interpolation], box=box)
        resized = image.resize((width, height), FILTERS[self.interpolation])
        return resized.crop((left, top, left + size, top + size))

    def normalize(self, images: Tensor) -> Tensor:
        """As `normalize`, with the mean and standard deviation of the weights."""
        return normalize(images, self.mean, self.std)

    def card(self) -> dict[str, Any]:
        """What `from_card` reads, but for the size, which a card names ``image_size``."""
        return {key: value for key, value in self._asdict().items() if key != "size"}

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "Preprocessing":
        """Preprocessing of a saved backbone.

        Raises:
            ValueError: If the card holds what is no preprocessing.
        """
        ours = cls()
        size = card.get("image_size") or ours.size
        found = ours.at(size)._replace(**{key: card[key] for key in ours.card() if key in card})
        found = found._replace(
            mean=_channels(found.mean), std=_channels(found.std), crop_of=_sides(found.crop_of)
        )
        if found.interpolation not in FILTERS:
            raise ValueError(
                f"interpolation is {found.interpolation!r}, not one of {list(FILTERS)}"
            )
        if min(found.std) <= 0:
            raise ValueError(f"std is {found.std}")
        return found


def _channels(values: Any) -> Channels:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"expected one number per channel, got {str(values)[:40]}")
    red, green, blue = map(float, values)
    return red, green, blue


def _sides(values: Any) -> tuple[int, int]:
    if not isinstance(values, list | tuple) or [type(value) for value in values] != [int, int]:
        raise ValueError(f"crop_of is {str(values)[:40]}, expected two sides")
    small, large = values
    if not 0 < small <= large:
        raise ValueError(f"crop_of is {str(values)[:40]}, expected two sides that ascend")
    return small, large


def normalize(images: Tensor, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """Subtract the mean and divide by the standard deviation, as float32 (float64 for float64).

    ``images``: uint8 in 0..255 or float in 0..1, shape (..., 3, H, W). The default moments are ImageNet's.

    Examples:
        >>> normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([2.2489, 2.4286, 2.6400])
    """
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    channels = zip(scaled.unbind(-3), mean, std, strict=True)
    return torch.stack([(channel - m) / s for channel, m, s in channels], dim=-3)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB image as uint8 (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
