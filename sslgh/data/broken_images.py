"""What training shows in the place of an image that cannot be read."""

from typing import NamedTuple

from PIL import Image

from sslgh.data.batch_sampler import REPEAT
from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.rng import SUBSTITUTE, rng_for

TRIES = 100
# What an item says where the image that was asked for is shown.
NONE_BROKEN = -1
# No epoch shows an image that often: the views of substitutes lie beyond all repetitions.
FIRST_SUBSTITUTE = 2**30


class Shown(NamedTuple):
    """What an item is made from.

    Attributes:
        image: Upright and in RGB.
        key: Epoch and index of its views; the index is the image's own.
        broken: The index that was asked for, where it cannot be read; else -1.
    """

    image: Image.Image
    key: tuple[int, int]
    broken: int


def load_or_replace(images: ImageSet, key: tuple[int, int], *, seed: int) -> Shown:
    """The image of a key, or another one where that cannot be read.

    Which one depends on the seed, the key and the files that are broken, not on what was shown
    before. Its views are others than those it has in the same epoch anyway.

    Args:
        images: The training set.
        key: Epoch and index, as `ResumableBatchSampler` gives them.
        seed: Of the run.

    Raises:
        DataError: If none of the 100 images that were drawn can be read either.
    """
    try:
        return Shown(images.image(key[1]), key, NONE_BROKEN)
    except DataError:
        return _substitute(images, key, seed)


def _substitute(images: ImageSet, key: tuple[int, int], seed: int) -> Shown:
    epoch, index = key
    generator = rng_for(seed, SUBSTITUTE, epoch, index)
    drawn = generator.integers(len(images), size=TRIES).tolist()
    # Two broken images may draw the same substitute: each shows a view of its own.
    repetition = int(generator.integers(FIRST_SUBSTITUTE, 2 * FIRST_SUBSTITUTE))
    reason = ""
    for position in drawn:
        try:
            image = images.image(position)
        except DataError as error:
            reason = str(error)
        else:
            return Shown(image, (epoch % REPEAT + REPEAT * repetition, position), index)
    raise DataError(
        f"{TRIES} images drawn at random cannot be read, so the images under data.root are gone or "
        f"broken; bring them back (the last: {reason})"
    )
