"""The network sees what the library of its weights would show it."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from sslgh.data import ImageSet
from sslgh.engine.launch import init_accelerator
from sslgh.evaluation.features import cached_features
from sslgh.models.initial import initial_card
from sslgh.models.library_preprocessing import timm_preprocessing, torchvision_preprocessing
from sslgh.preprocessing import MEAN, STD, Preprocessing, normalize
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Model

# One of each kind of size, share, interpolation, crop and moments.
TIMM = (
    "tf_efficientnet_lite0",
    "resnet18.a1_in1k",
    "resnet50.tv_in1k",
    "convnext_tiny.fb_in22k_ft_in1k_384",
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_small_patch14_dinov2.lvd142m",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "inception_v3.tv_in1k",
    "efficientnet_b3.ra2_in1k",
    "mobilenetv3_large_100.ra_in1k",
    "tf_efficientnetv2_s.in21k",
    "beit_base_patch16_224.in22k_ft_in22k",
)
TORCHVISION = ("resnet18", "resnet50", "efficientnet_b3", "vit_b_16", "swin_t", "mobilenet_v2")
# Landscape and portrait, all longer and shorter than sizes of crops, none smaller than the largest input.
SIDES = ((640, 555), (523, 700), (1000, 530), (600, 600))


def drawn(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", TIMM)
def test_an_image_becomes_the_tensor_of_timms_own_transform(name) -> None:
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs, ours = create_transform(**config, is_training=False), timm_preprocessing(name)
    for width, height in SIDES:
        image = drawn(width, height)
        assert torch.allclose(ours(image), theirs(image), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", TORCHVISION)
def test_an_image_becomes_the_tensor_of_torchvisions_own_transform(name) -> None:
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    for width, height in SIDES:
        image = drawn(width, height)
        assert torch.allclose(torchvision_preprocessing(name)(image), theirs(image), atol=1e-6)


class Watched(nn.Module):
    """Stands for a network of some preprocessing."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        """One feature per image, (N, 1)."""
        return self.weight * images.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize(
    "name", [*(f"timm:{n}" for n in TIMM), *(f"torchvision:{n}" for n in TORCHVISION)]
)
def test_what_a_network_is_given_equals_its_librarys_own_transform(name, tmp_path) -> None:
    library, kind = name.split(":")
    if library == "timm":
        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(kind).to_dict())
        theirs = create_transform(**config, is_training=False)
    else:
        theirs = torchvision.models.get_model_weights(kind).DEFAULT.transforms()
    drawn(640, 555).save(tmp_path / "a.bmp")
    images = ImageSet((tmp_path / "a.bmp",), None, (), ("a.bmp",))
    network = Watched(Preprocessing.from_card(initial_card(Model(init=name))))
    given = []
    network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    settings = Data(source="folder", root=str(tmp_path), workers=0)
    cached_features(
        network,
        images,
        settings,
        size=network.preprocessing.size,
        directory=tmp_path,
        accelerator=init_accelerator(),
    )
    assert torch.allclose(given[0][0], theirs(drawn(640, 555)), atol=1e-6, rtol=1e-6)


def test_the_families_differ_in_every_setting() -> None:
    found = [timm_preprocessing(name) for name in TIMM]
    assert len(TIMM) >= 12
    for field in ("size", "interpolation", "squash", "mean", "std"):
        assert len({getattr(each, field) for each in found}) > 1, field
    assert len({each.resize / each.size for each in found}) > 2


def test_weights_that_want_a_border_are_refused() -> None:
    border = next(
        tag for tag in timm.list_pretrained() if timm.get_pretrained_cfg(tag).crop_mode == "border"
    )
    with pytest.raises(ValueError, match="border"):
        timm_preprocessing(border)


def test_an_image_of_the_right_size_keeps_its_pixels_and_a_small_one_its_border() -> None:
    ours = Preprocessing().at(32)
    image = drawn(32, 32)
    assert ours.crop(image) is image
    small = Image.new("RGB", (16, 16), (255, 0, 0))
    small.putpixel((0, 0), (0, 0, 255))
    assert np.asarray(ours.crop(small))[0, 0, 2] > 200


def test_a_card_keeps_the_preprocessing() -> None:
    for name in TIMM[:3]:
        ours = timm_preprocessing(name)
        assert Preprocessing.from_card({"image_size": ours.size, **ours.card()}) == ours
    assert Preprocessing.from_card({"image_size": 64}) == Preprocessing().at(64)
    listed = {"image_size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert Preprocessing.from_card(listed).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "broken",
    [
        {"mean": [0.5]},
        {"std": [0, 1, 1]},
        {"interpolation": "box"},
        {"crop_of": [5, 3]},
        {"crop_of": 3},
        {"mean": "abc"},
    ],
)
def test_a_card_with_what_is_no_preprocessing_is_refused(broken) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words differ by key
        Preprocessing.from_card({"image_size": 64, **broken})


def test_pixels_of_a_batch_are_normalized_as_images_are() -> None:
    ours = Preprocessing(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    image = drawn(8, 8)
    batch = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    assert torch.equal(ours(batch)[0], ours(image))
    expected = (batch.double() / 255 - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(
        ours.std
    )[:, None, None]
    assert torch.allclose(ours(batch).double(), expected, atol=1e-6)
    assert torch.equal(normalize(batch), normalize(batch, MEAN, STD))
