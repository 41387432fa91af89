"""Backbones of timm and torchvision without their classifiers, tried on two images before they train.

What stands before the classifier stays: pool, norm and flatten of its head, under the library's parameter
names. F is the width of what comes out, whatever the library says.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from sslgh.recipe.errors import RecipeError

TIMM, TORCHVISION = "timm:", "torchvision:"
HEADS = ("fc", "classifier", "heads", "head")
# Layers of a head that make features of maps; Linear, Conv2d, Dropout and activations classify.
KEPT = (nn.LayerNorm, nn.AdaptiveAvgPool2d, nn.Flatten)
# Auxiliary heads of GoogLeNet and Inception.
AUXILIARY = ("aux1", "aux2", "AuxLogits")
# With pretrained weights torchvision has them turn ImageNet's normalization into that of mean and deviation 0.5, by an
# attribute that no state dict holds; here that is their preprocessing.
TRANSFORMED = ("googlenet", "inception_v3")
# What networks raise for images that are too small or of another side than they were made for: torch's
# checks of shapes, assertions of timm, window sizes of 0, and unknown options.
UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ZeroDivisionError)
# Faults of the network or the machine, not of the images: weights that cannot be fetched, too little memory.
PASSED_ON = (OSError, RecipeError, torch.OutOfMemoryError)
# Sides (pixels) that a refusal may advise besides the one a network was made for, and the one that is usual.
SIDES, USUAL_SIDE = (64, 96, 128, 224), 224


def library_backbone(name: str, *, image_size: int | None, pretrained: bool) -> nn.Module:
    """A backbone of a library: (N, 3, S, S) -> (N, F), with attribute ``num_features`` (F).

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        image_size: S (pixels); None: the side that the network was made for.
        pretrained: Load the library's default weights.

    Raises:
        ValueError: If the library has no such model, or it makes no features of such images.
        OSError: If its weights cannot be fetched.
    """
    kind = name.split(":", 1)[1]
    find = _timm if name.startswith(TIMM) else _torchvision
    builds, native = find(kind, pretrained)
    side = image_size or native
    try:
        return _first_fitting(builds, side)
    except PASSED_ON:
        raise
    except UNFIT as error:
        if "meta" in str(error):  # not a fault of the network: it is built without memory
            raise
        reason = _reason(error)
    fitting = _fitting_side(builds, side, native)
    remedy = "choose another" if fitting is None else f"set data.size: {fitting}, or choose another"
    raise ValueError(
        f"model.backbone: {name} does not accept images of {side} x {side} pixels ({reason}); {remedy} "
        "backbone"
    )


Build = Callable[[int], nn.Module]


def _first_fitting(builds: list[Build], side: int) -> nn.Module:
    """The first of several ways to build a network that takes images of a side; the error of the first way."""
    faults: list[Exception] = []
    state = torch.get_rng_state()
    for build in builds:
        torch.set_rng_state(state)  # weights do not depend on what was tried before
        try:
            return with_features(build(side), side)
        except PASSED_ON:
            raise
        except UNFIT as error:
            faults.append(error)
    raise faults[0]


def _fitting_side(builds: list[Build], side: int, native: int) -> int | None:
    """The next larger usual side (pixels) that the network takes, else the one it was made for, if any."""
    for other in (*(s for s in SIDES if s > side), native):
        try:
            _first_fitting(builds, other)
        except UNFIT:
            continue
        return other
    return None


def with_features(model: nn.Module, side: int) -> nn.Module:
    """The model with its ``num_features``, and with a pool where it gives maps or tokens.

    Raises:
        ValueError: If it gives no floats per image.
    """
    output = try_images(model, side)
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
        raise ValueError(f"it gives {type(output).__name__}, not one row of floats per image")
    if output.ndim > 2:
        channels_last = output.ndim == 3 or getattr(model, "output_fmt", "NCHW") == "NHWC"
        model.register_forward_hook(partial(pooled, channels_last))
        output = pooled(channels_last, model, (), output)
    if getattr(model, "num_features", None) != output.shape[1]:  # it may be a property
        model.num_features = output.shape[1]  # type: ignore[assignment]
    return model


def pooled(channels_last: bool, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Mean over all places of maps (N, F, H, W) or (N, H, W, F), or of tokens (N, T, F)."""
    return output.flatten(1, -2).mean(1) if channels_last else output.flatten(2).mean(2)


def try_images(model: nn.Module, side: int) -> Any:
    """What a model in training mode gives for two black images; buffers and random state stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return functional_call(model, buffers, torch.zeros(2, 3, side, side))


def _timm(kind: str, pretrained: bool) -> tuple[list[Build], int]:
    """Ways to build a model of timm, and the side (pixels) that it was made for."""
    import timm  # noqa: PLC0415 - takes a second

    config = timm_config(kind)
    if pretrained and not timm.is_model_pretrained(kind):
        raise ValueError(f"timm has no weights of {kind}; leave model.init out")
    create: Any = partial(timm.create_model, kind, pretrained=pretrained, num_classes=0)

    def resized(side: int) -> nn.Module:
        model: nn.Module = create()
        set_input_size(model, side)
        return model

    native = config.input_size[-1] if config is not None else USUAL_SIDE
    return [resized, lambda side: create(img_size=side)], native


def timm_config(kind: str) -> Any:
    """Timm's configuration of the default weights of a model, or of those of a tag NAME.TAG; None without weights.

    Raises:
        ValueError: If timm has no such model or tag.
    """
    import timm  # noqa: PLC0415 - takes a second

    if not timm.is_model(kind):
        near = timm.list_models(f"*{kind[:6]}*")[:3]
        raise ValueError(
            f"timm has no model {kind!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    try:
        return timm.get_pretrained_cfg(kind)
    except RuntimeError as error:  # an unknown tag
        raise ValueError(f"timm has no weights {kind!r} ({error})") from None


def check_torchvision(kind: str) -> None:
    """Raise ``ValueError`` if torchvision has no such classification model."""
    if kind not in torchvision.models.list_models(torchvision.models):
        raise ValueError(f"torchvision has no classification model {kind!r}")


def _torchvision(kind: str, pretrained: bool) -> tuple[list[Build], int]:
    """Ways to build a model of torchvision, and the side (pixels) that it was made for."""
    check_torchvision(kind)
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if kind in TRANSFORMED:
        options["transform_input"] = False
        if not pretrained:
            options["init_weights"] = True  # the default, which warns unless it is given

    def build(side: int, **sizes: Any) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(kind, **options, **sizes)
        _remove_classifier(model)
        set_input_size(model, side)
        return model

    return [build, lambda side: build(side, input_size=(side, side))], USUAL_SIDE  # MaxViT's


def classifying_layers(model: nn.Module) -> list[str]:
    """Dotted names of all that classifies in a model of torchvision; what pools, flattens and normalizes is not in it.

    Examples:
        >>> classifying_layers(torchvision.models.get_model("convnext_tiny"))
        ['classifier.2']
    """
    name = next(head for head in HEADS if hasattr(model, head))
    head = getattr(model, name)
    if isinstance(head, nn.Sequential) and any(isinstance(layer, KEPT) for layer in head):
        return [f"{name}.{i}" for i, layer in enumerate(head) if not isinstance(layer, KEPT)]
    return [name]


def _remove_classifier(model: nn.Module) -> None:
    """Replace all that classifies by identities."""
    for name in classifying_layers(model):
        model.set_submodule(name, nn.Identity())
    if hasattr(model, "aux_logits"):
        model.aux_logits = False  # type: ignore[assignment]
        for part in AUXILIARY:
            if hasattr(model, part):
                setattr(model, part, None)
        model.dropout = nn.Identity()


def resize_library_backbone(model: nn.Module, name: str, side: int) -> None:
    """Make a trained network one for images of another side (pixels), in place.

    Raises:
        ValueError: If it takes no images of that side.
    """
    set_input_size(model, side)
    check_side(model, name, side, remedy="set data.size to the side that it was trained on")


def check_side(model: nn.Module, name: str, side: int, *, remedy: str) -> None:
    """Refuse a side (pixels) that a network does not take, before it trains.

    Raises:
        ValueError: One sentence that ends with the remedy.
    """
    try:
        try_images(model, side)
    except UNFIT as error:
        raise ValueError(
            f"{name} does not accept images of {side} x {side} pixels here ({_reason(error)}); {remedy}"
        ) from None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:150]


def set_input_size(model: nn.Module, side: int) -> None:
    """Interpolate the positions of a transformer to another side (pixels), in place; others stay as they are."""
    resize = getattr(model, "set_input_size", None)  # timm's transformers
    if callable(resize):
        resize(img_size=side)
    elif isinstance(model, VisionTransformer) and side != model.image_size:
        if side % model.patch_size:  # its convolution would leave out the rest
            raise ValueError(f"{side} is no multiple of its patch of {model.patch_size} pixels")
        tokens = {"encoder.pos_embedding": model.encoder.pos_embedding}
        tokens = interpolate_embeddings(side, model.patch_size, tokens)
        model.encoder.pos_embedding = nn.Parameter(tokens["encoder.pos_embedding"].detach())
        model.image_size = side
        model.seq_length = model.encoder.pos_embedding.shape[1]
