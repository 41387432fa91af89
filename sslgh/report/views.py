"""Views of some training images as the network sees them."""

import numpy as np
import torch
from PIL import Image

from sslgh.data import DataError, augment_views, input_size, training_set
from sslgh.data.batch_sampler import SampleKey
from sslgh.data.datasets import PretrainDataset
from sslgh.explore.thumbnails import data_uri
from sslgh.recipe import Recipe

SHOWN = 8
SIDE = 128


def view_pictures(recipe: Recipe) -> list[tuple[str, str]]:
    """``data:`` addresses of the two views of some images, spread over the training set.

    Empty where the images are not there any more, and for supervised training, which has other views.
    """
    if recipe.finetune is not None:
        return []
    try:
        images = training_set(recipe.data)
        size = input_size(recipe.data, images, None)
        dataset = PretrainDataset(images, recipe.data.augment, size=size, seed=recipe.seed)
        places = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int).tolist()
        samples = [dataset[SampleKey(0, 0, place)] for place in places]
    except (DataError, OSError):
        return []
    crops = torch.stack([sample.crops for sample in samples])
    params = torch.stack([sample.params for sample in samples])
    views = augment_views(crops, params, recipe.data.augment, normalize=lambda pixels: pixels)
    return [(_address(first), _address(second)) for first, second in zip(*views, strict=True)]


def _address(view: torch.Tensor) -> str:
    pixels = (view.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    side = max(SIDE, image.width) if image.width >= SIDE else SIDE // image.width * image.width
    return data_uri(image.resize((side, side), Image.Resampling.NEAREST), quality=80)
