import numpy as np
from PIL import Image

from sslgh.data import ImageSet
from sslgh.evaluation.five_crop import FiveCrops
from sslgh.preprocessing import Preprocessing


def test_crops_of_squashed_images_lie_within_the_whole_image(tmp_path) -> None:
    """Left half black, right half white, twice as wide as high."""
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = ImageSet((tmp_path / "a.png",), None, (), ("a.png",))
    squashed = FiveCrops(images, Preprocessing(size=8, squash=True), 2)
    kept = FiveCrops(images, Preprocessing(size=8), 2)
    center, uncut = (crops[4][0].float().mean((0, 1)) for crops in (squashed, kept))
    assert center[:2].max() < 60  # of the 10 columns the inner 8: four black, four white
    assert center[-2:].min() > 195
    corner = squashed[0][0].float().mean() / 255
    assert 0.35 < corner < 0.45  # five black columns and three white ones
    assert kept[0][0].float().mean() / 255 < 0.01  # ten columns of twenty are black
    assert uncut[:3].max() < 60
