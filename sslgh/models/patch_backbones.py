"""Backbones whose stem cuts an image into patches, at sizes that suit small images: ViT, Swin, ConvNeXt.

All are timm's, under timm's parameter names. None drops paths: what a step computes does not depend on
the process that computes it.
"""

import warnings
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

USUAL_SIZE = 224


class Family(NamedTuple):
    """How a kind of backbone cuts an image.

    Attributes:
        largest: Patch side (pixels) that is usual for 224 pixels; smaller images get a smaller one.
        least: Tokens a side that a patch chosen here leaves.
        merges: Factor by which later stages merge tokens, and which a side must hold.
    """

    largest: int
    least: int
    merges: int


VIT, SWIN, CONVNEXT = Family(16, 8, 1), Family(4, 16, 8), Family(4, 16, 1)
FAMILIES = {
    "vit_tiny": ("vit_tiny_patch16_224", VIT),
    "vit_small": ("vit_small_patch16_224", VIT),
    "vit_base": ("vit_base_patch16_224", VIT),
    "vit_large": ("vit_large_patch16_224", VIT),
    "swin_tiny": ("swin_tiny_patch4_window7_224", SWIN),
    "convnext_tiny": ("convnext_tiny", CONVNEXT),
}


def patch_for(name: str, image_size: int) -> int:
    """The patch side (pixels) for an image side: the largest that leaves enough tokens.

    A ViT gets at least 8 a side: patch 16 at 224, 4 at 32, 2 at 16. Swin and ConvNeXt, whose stages halve
    the sides three times, get at least 16: patch 4 at 224, 2 at 32, 1 at 16.

    Args:
        name: A key of ``FAMILIES``.
        image_size: Side of the input (pixels).

    Examples:
        >>> [patch_for("vit_small", size) for size in (224, 96, 32, 16)]
        [16, 12, 4, 2]
        >>> [patch_for("swin_tiny", size) for size in (224, 96, 32, 16)]
        [4, 4, 2, 1]
    """
    _, family = FAMILIES[name]
    found = [p for p in _fitting(image_size, family) if p <= image_size / family.least]
    return max((p for p in found if p <= family.largest), default=1)


def build_patched(name: str, *, patch: int | None, image_size: int | None) -> nn.Module:
    """A backbone without its classifier: (N, 3, S, S) -> (N, F).

    A ViT gives its class token after the last norm (timm's pooling ``token``), Swin and ConvNeXt the mean
    over the last stage's tokens. ViT and Swin take other sides than the one they were built for, in
    multiples of the patch (Swin: 8 patches); positions are interpolated.

    Args:
        name: A key of ``FAMILIES``.
        patch: Patch side (pixels), of ConvNeXt the stride of its stem; None: `patch_for`.
        image_size: S; None: 224.

    Returns:
        A module with attribute ``num_features`` (F).

    Raises:
        ValueError: If patches do not fill the image.
    """
    import timm  # noqa: PLC0415 - takes a second

    image_size = image_size or USUAL_SIZE
    patch = patch or patch_for(name, image_size)
    check_patch(name, patch, image_size)
    kind, options = timm_arguments(name, patch=patch, image_size=image_size)
    model: nn.Module = timm.create_model(kind, pretrained=False, num_classes=0, **options)
    if needs_stem(name, patch):
        _give_stem(model, patch)
    model.register_forward_pre_hook(partial(_check_input, name, patch))
    return model


def timm_arguments(name: str, *, patch: int, image_size: int) -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments of `timm.create_model` for a key of ``FAMILIES``.

    Examples:
        >>> timm_arguments("vit_tiny", patch=4, image_size=32)[1]
        {'img_size': 32, 'patch_size': 4, 'dynamic_img_size': True}
    """
    kind, family = FAMILIES[name]
    options: dict[str, Any] = {}
    if family is VIT:
        options = {"img_size": image_size, "patch_size": patch, "dynamic_img_size": True}
    elif family is SWIN:
        options = {"img_size": image_size, "patch_size": patch, "strict_img_size": False}
        options |= {"window_size": window_for(image_size // patch), "drop_path_rate": 0.0}
    return kind, options


def needs_stem(name: str, patch: int) -> bool:
    """Whether the first layer is one that no argument of timm gives."""
    family = FAMILIES[name][1]
    return family is CONVNEXT and patch != family.largest


def resize_patched(model: nn.Module, name: str, *, patch: int, image_size: int) -> None:
    """Interpolate the positions of a trained backbone to another image side, in place.

    Args:
        model: A model of `build_patched`.
        name: A key of ``FAMILIES``.
        patch: Patch side (pixels).
        image_size: The new side (pixels).

    Raises:
        ValueError: If patches do not fill the image.
    """
    check_patch(name, patch, image_size, trained=True)
    resize: Any = getattr(model, "set_input_size", None)  # ConvNeXt has no positions
    if FAMILIES[name][1] is SWIN:
        with warnings.catch_warnings():  # of torch, about how timm indexes the tables of biases
            warnings.simplefilter("ignore", UserWarning)
            resize(img_size=image_size, window_size=window_for(image_size // patch))
    elif resize is not None:
        resize(img_size=image_size)


def check_patch(name: str, patch: int, image_size: int, *, trained: bool = False) -> None:
    """Refuse patches that do not fill the image.

    Args:
        name: A key of ``FAMILIES``.
        patch: Patch side (pixels).
        image_size: Side of the image (pixels).
        trained: Whether there are weights already, for patches of this side alone.

    Raises:
        ValueError: One sentence with the nearest patches and sizes that fit.
    """
    family = FAMILIES[name][1]
    step = patch * family.merges
    if image_size % step == 0:
        return
    fitting = [] if trained else _fitting(image_size, family)
    below, above = [p for p in fitting if p < patch][-1:], [p for p in fitting if p > patch][:1]
    sizes = [size for size in (image_size // step * step, (image_size // step + 1) * step) if size]
    remedies = [("model.patch", below + above)] if fitting else []
    found = ", or ".join(
        f"{key}: {' or '.join(map(str, values))}"
        for key, values in [*remedies, ("data.size", sizes)]
    )
    needed = f"{family.merges} patches of {patch}" if family.merges > 1 else f"its patch of {patch}"
    raise ValueError(
        f"{name} needs images whose side is a multiple of {needed} pixels, got {image_size}; set {found}"
    )


def window_for(grid: int) -> int:
    """Side (tokens) of Swin's windows for the side of its first grid: 7 at 224 pixels, as published.

    The largest up to 7 that cuts the third stage without a rest; the fourth is one window, or is padded.

    Examples:
        >>> [window_for(grid) for grid in (56, 24, 16, 8)]
        [7, 6, 4, 2]
    """
    third = grid // 4
    return next((side for side in (7, 6, 5, 4) if third % side == 0), min(third, 7))


def _fitting(image_size: int, family: Family) -> list[int]:
    return [p for p in range(1, image_size + 1) if image_size % (p * family.merges) == 0]


def _give_stem(model: Any, patch: int) -> None:
    # Asked for a patch of 2, timm halves the side once more in the first stage.
    old = model.stem[0]
    stem = nn.Conv2d(old.in_channels, old.out_channels, patch, stride=patch)
    nn.init.trunc_normal_(stem.weight, std=0.02)
    assert stem.bias is not None
    nn.init.zeros_(stem.bias)
    model.stem[0] = stem


def _check_input(name: str, patch: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    step = patch * FAMILIES[name][1].merges
    height, width = inputs[0].shape[-2:]
    if height % step or width % step:
        raise ValueError(
            f"{name} with model.patch {patch} takes images whose sides are multiples of {step} pixels, got "
            f"{height} x {width}; choose sizes of views and local crops accordingly"
        )
