"""Pretrained weights of timm, torchvision, the Hugging Face hub and a package, with their own preprocessing."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from torch import nn

from sslgh.models.backbones import build_backbone, resize_backbone
from sslgh.models.library_backbones import TIMM, TORCHVISION
from sslgh.models.library_preprocessing import (
    from_timm,
    timm_preprocessing,
    torchvision_preprocessing,
)
from sslgh.models.packaged import PACKAGE, packaged, packaged_backbone
from sslgh.recipe.run_recipe import LOCAL

HUB = "hf-hub:"
LIBRARIES = (TIMM, TORCHVISION, HUB, LOCAL, PACKAGE)
HUB_SECONDS = 5.0
Result = TypeVar("Result")


def is_library(name: str) -> bool:
    """Whether a name is that of a library's or the hub's weights."""
    return name.startswith(LIBRARIES)


def library_card(name: str) -> dict[str, Any]:
    """Architecture and preprocessing of the weights that a name of `LIBRARIES` stands for.

    Raises:
        ValueError: If there are no such weights, or the hub cannot be reached.
    """
    if name.startswith(PACKAGE):
        name = packaged(name).backbone
    if name.startswith(TORCHVISION):
        found = torchvision_preprocessing(name.removeprefix(TORCHVISION))
    elif name.startswith(TIMM):
        found = timm_preprocessing(name.removeprefix(TIMM))
    else:
        architecture, config = _saved_config(name)
        name, found = TIMM + architecture, from_timm(name, config)
    shape = {"backbone": name, "stem": "cifar", "width": 1.0, "patch": None}
    return shape | {"image_size": found.size} | found.card()


def pretrained_backbone(name: str, image_size: int) -> nn.Module:
    """The backbone with those weights: (N, 3, S, S) to (N, F), with attribute ``num_features``.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``hf-hub:ORG/NAME``, ``local-dir:FOLDER`` or ``package:NAME``.
        image_size: S (pixels).

    Raises:
        ValueError: As `library_card`, or if it takes no images of that side.
    """
    if name.startswith((TIMM, TORCHVISION)):
        return _fetched(name, lambda: build_backbone(name, image_size=image_size, pretrained=True))
    if name.startswith(PACKAGE):
        return packaged_backbone(name, image_size)
    import timm  # noqa: PLC0415 - takes a second

    card = library_card(name)
    backbone = build_backbone(card["backbone"], image_size=card["image_size"])
    saved = _fetched(name, lambda: timm.create_model(name, pretrained=True, num_classes=0))
    _copy_weights(saved, backbone, card["image_size"])
    if image_size != card["image_size"]:
        resize_backbone(backbone, card["backbone"], patch=None, image_size=image_size)
    return backbone


def _copy_weights(saved: nn.Module, backbone: nn.Module, side: int) -> None:
    """Copy the weights of a model that the hub describes into one that is built by its name alone.

    Raises:
        ValueError: If they are not the same network: it was built with options that no card could keep.
    """
    try:
        backbone.load_state_dict(saved.state_dict())
        with torch.no_grad():
            images = torch.linspace(-2, 2, 3 * side**2).view(1, 3, side, side)
            theirs, ours = saved.eval()(images), backbone.eval()(images)
        # A network that gives maps or tokens has got a pool, which no weight belongs to.
        same = theirs.ndim > 2 or torch.allclose(theirs, ours, atol=1e-4)
    except RuntimeError:
        same = False
    if not same:
        raise ValueError(
            "the model was built with options of its own, which a run could not rebuild; choose another, or probe its "
            "features: sslgh probe --features FILE.npz"
        )


def _saved_config(name: str) -> tuple[str, dict[str, Any]]:
    """Architecture and data config of a model on the hub, or in a folder as `timm` saves it for the hub."""
    from timm.data.config import resolve_data_config  # noqa: PLC0415 - takes a second
    from timm.models._hub import (  # noqa: PLC0415
        load_model_config_from_hf,
        load_model_config_from_path,
    )

    read = load_model_config_from_path if name.startswith(LOCAL) else load_model_config_from_hf
    where = name.split(":", 1)[1]
    try:
        config, architecture, _ = _fetched(name, lambda: read(where))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{name} holds no model of timm: its config.json names none") from None
    resolve: Any = resolve_data_config
    return architecture, resolve(pretrained_cfg=config)


def _fetched(name: str, fetch: Callable[[], Result]) -> Result:
    """What ``fetch`` gives, from the network or a warm cache.

    Raises:
        ValueError: If it is in no cache and the host does not answer within seconds, or there is no such model.
    """
    online = name.startswith((TORCHVISION, LOCAL)) or _hub_answers()
    try:
        with nullcontext() if online else _hub_offline():
            return fetch()
    except OSError as error:
        reason = (
            str(error).splitlines()[0][:200]
            if online
            else f"no connection to {huggingface_hub.constants.ENDPOINT}"
        )
        raise ValueError(
            f"the weights {name} could not be fetched ({reason}); fetch them once where there is a network and copy "
            "the cache (HF_HOME, TORCH_HOME), or give a weights file"
        ) from None


def _hub_answers() -> bool:
    """Whether the hub, or the mirror that HF_ENDPOINT names, can be reached."""
    hub = urlsplit(huggingface_hub.constants.ENDPOINT)
    if hub.scheme in getproxies():  # only the proxy reaches it
        return True
    port = hub.port or (443 if hub.scheme == "https" else 80)
    try:
        socket.create_connection((hub.hostname, port), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Have the hub's library read its cache only; it would try again for more than a minute."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
