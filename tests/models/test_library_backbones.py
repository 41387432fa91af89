import pytest
import timm
import torch
import torchvision
from torch import nn

from sslgh.models import build_backbone
from sslgh.models.backbones import check_local_crops, resize_backbone
from sslgh.models.library_backbones import try_images, with_features
from sslgh.recipe import RecipeError

# One of each way to make features: norm and flatten before the classifier, maps that are pooled, heads that are
# trained beside the last one, positions, widths that the library does not say; scripts/checks/sweep_backbones.py
# tries every family.
SMALL = [
    *("timm:test_byobnet", "timm:test_convnext", "timm:test_efficientnet", "timm:test_mambaout"),
    *("timm:test_vit", "timm:test_vit_relpos", "timm:lcnet_035", "timm:regnetx_002"),
    *("timm:starnet_s050", "timm:xcit_nano_12_p16_224", "timm:pit_ti_224", "timm:mixer_s32_224"),
    *("torchvision:convnext_tiny", "torchvision:googlenet", "torchvision:mobilenet_v3_small"),
    *("torchvision:regnet_y_400mf", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1"),
]


def photos(side, number=2):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_a_network_gives_one_row_per_image_and_every_parameter_a_gradient(name) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64)
    features = backbone(photos(64))
    assert features.shape == (2, backbone.num_features)
    assert features.dtype == torch.float32
    features.square().sum().backward()
    without = [key for key, p in backbone.named_parameters() if p.grad is None]
    assert without == []


def test_the_features_of_a_convnext_are_what_its_classifier_sees() -> None:
    backbone = build_backbone("torchvision:convnext_tiny", image_size=64).eval()
    theirs = torchvision.models.convnext_tiny(weights=None).eval()
    missing = theirs.load_state_dict(backbone.state_dict(), strict=False)
    assert missing.missing_keys == ["classifier.2.weight", "classifier.2.bias"]
    assert missing.unexpected_keys == []
    theirs.classifier[2] = nn.Identity()
    torch.testing.assert_close(backbone(photos(64)), theirs(photos(64)))


def test_the_features_of_timm_are_what_its_classifier_sees_and_as_wide() -> None:
    backbone = build_backbone("timm:lcnet_035", image_size=64).eval()
    theirs = timm.create_model("lcnet_035", pretrained=False).eval()
    theirs.load_state_dict(backbone.state_dict(), strict=False)
    expected = theirs.forward_head(theirs.forward_features(photos(64)), pre_logits=True)
    torch.testing.assert_close(backbone(photos(64)), expected)
    assert backbone.num_features == theirs.head_hidden_size == expected.shape[1]
    assert backbone.num_features != theirs.num_features


def test_auxiliary_heads_and_the_dropout_of_a_classifier_are_gone() -> None:
    backbone = build_backbone("torchvision:googlenet", image_size=64)
    assert not [key for key in backbone.state_dict() if key.startswith(("aux", "fc"))]
    backbone.eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    same = backbone(photos(64))
    for module in backbone.modules():
        module.training = isinstance(module, nn.Dropout)
    torch.testing.assert_close(backbone(photos(64)), same)


def test_the_width_of_pooled_maps_does_not_depend_on_the_image() -> None:
    backbone = build_backbone("torchvision:squeezenet1_1", image_size=64).eval()
    theirs = torchvision.models.squeezenet1_1(weights=None).eval()
    theirs.load_state_dict(backbone.state_dict(), strict=False)
    for side in (64, 96):
        expected = theirs.features(photos(side)).mean((2, 3))
        torch.testing.assert_close(backbone(photos(side)), expected)


class Gives(nn.Module):
    """A network that gives the same output for all images."""

    def __init__(self, output, output_fmt="NCHW"):
        super().__init__()
        self.output, self.output_fmt = output, output_fmt

    def forward(self, images):  # noqa: D102
        return self.output


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((2, 5, 3, 4), "NCHW", (2, 3)),
        ((2, 3, 4, 5), "NHWC", (1, 2)),
        ((2, 7, 5), "NLC", (1,)),
        ((2, 5), "NCHW", ()),
    ],
)
def test_maps_and_tokens_are_averaged_over_their_places(shape, layout, axes) -> None:
    output = torch.randn(shape)
    network = with_features(Gives(output, layout), 8)
    expected = output.mean(axes) if axes else output
    assert network.num_features == 5
    torch.testing.assert_close(network(photos(8)), expected)


@pytest.mark.parametrize("output", [(torch.zeros(2, 3),), torch.zeros(2, 3).long(), torch.zeros(2)])
def test_what_is_no_row_of_floats_is_refused(output) -> None:
    with pytest.raises(ValueError, match="not one row of floats per image"):
        with_features(Gives(output), 8)


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "timm:test_vit", "torchvision:shufflenet_v2_x0_5"]
)
def test_a_network_that_fits_is_drawn_as_its_library_draws_it(name) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64)
    drawn_next = torch.rand(3)
    torch.manual_seed(0)
    kind = name.split(":")[1]
    if name.startswith("timm"):
        theirs = timm.create_model(kind, pretrained=False, num_classes=0)
        if hasattr(theirs, "set_input_size"):
            theirs.set_input_size(img_size=64)
    else:
        theirs = torchvision.models.get_model(kind, weights=None)
        theirs.fc = nn.Identity()
    assert torch.equal(drawn_next, torch.rand(3))
    expected = theirs.state_dict()
    assert list(backbone.state_dict()) == list(expected)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert backbone.training


def test_a_network_that_must_know_its_side_is_built_for_it() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("timm:pit_ti_224", image_size=64)
    torch.manual_seed(0)
    theirs = timm.create_model("pit_ti_224", num_classes=0, img_size=64)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def test_trying_images_leaves_buffers_and_random_state_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    try_images(network, 8)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("torchvision:inception_v3", 32, r"Kernel size .*set data\.size: 96, or choose another"),
        ("timm:test_vit", 8, r"does not accept images of 8 x 8 pixels"),
    ],
)
def test_images_that_a_network_does_not_take_are_refused_with_a_side_that_it_does(
    name, side, message
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(name, image_size=side)
    assert "\n" not in str(error.value)


def test_a_vit_of_torchvision_gets_positions_for_its_side() -> None:
    backbone = build_backbone("torchvision:vit_b_32", image_size=64)
    assert backbone.encoder.pos_embedding.shape[1] == 2 * 2 + 1
    resize_backbone(backbone, "torchvision:vit_b_32", patch=None, image_size=96)
    assert backbone(photos(96)).shape == (2, 768)
    with pytest.raises(ValueError, match="100 is no multiple of its patch of 32"):
        resize_backbone(backbone, "torchvision:vit_b_32", patch=None, image_size=100)


def test_another_side_than_that_of_training_is_refused_where_it_cannot_be_set() -> None:
    backbone = build_backbone("timm:pit_ti_224", image_size=64)
    with pytest.raises(ValueError, match=r"set data\.size to the side that it was trained on"):
        resize_backbone(backbone, "timm:pit_ti_224", patch=None, image_size=96)


def test_local_crops_are_refused_where_they_do_not_fit() -> None:
    backbone = build_backbone("timm:pit_ti_224", image_size=64)
    with pytest.raises(ValueError, match=r"set data\.augment\.local_crops: 0"):
        check_local_crops(backbone, "timm:pit_ti_224", 32)
    check_local_crops(build_backbone("timm:resnet10t", image_size=64), "timm:resnet10t", 32)


def test_faults_that_are_not_of_the_images_keep_their_words(monkeypatch) -> None:
    for fault in (RecipeError("too little memory"), OSError("no network")):

        def build(*_, fault=fault, **__):
            raise fault

        monkeypatch.setattr(timm, "create_model", build)
        with pytest.raises(type(fault), match=str(fault)):
            build_backbone("timm:resnet10t", image_size=64)
