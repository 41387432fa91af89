"""A network on disk: ``backbone.safetensors`` with ``backbone.json``, and its classifier."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sslgh.models.adapters import (
    ADAPTFORMER,
    adapter_card,
    adapter_tensors,
    add_adapter,
    add_adaptformers,
    merged,
)
from sslgh.models.backbones import build_backbone, resize_backbone
from sslgh.models.classifier import CosineClassifier
from sslgh.models.library_backbones import TIMM, TORCHVISION, with_features
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.adapter import Adapter

WEIGHTS, CARD, ADAPTER = "backbone.safetensors", "backbone.json", "adapter.safetensors"
CLASSIFIER, CLASSES = "classifier.safetensors", "classifier.json"
# Card of a folder of `sslgh classify`: heads on the features of a network that is not in the folder.
PHOTO_CLASSIFIER = "photo_classifier.json"
# Older runs name their classes in the record of their images alone.
NAMES = (CLASSES, "images.json")
# Keys of a card that not all backbones have.
OPTIONAL = ("patch", ADAPTFORMER)
log = logging.getLogger(__name__)
# Far beyond any backbone, and small enough that its shapes can be computed.
MOST_WIDTH, MOST_SIDE = 1000, 2**14


def save_backbone(backbone: nn.Module, directory: Path, card: dict[str, Any]) -> None:
    """Write the weights under torchvision's or timm's own names, and what rebuilds the module.

    Args:
        backbone: The module.
        directory: The run directory.
        card: ``backbone``, ``stem``, ``width``, ``patch``, ``image_size`` and further metadata (mean, std, versions).
    """
    tensors = {name: value.cpu() for name, value in backbone.state_dict().items()}
    _replace(directory / WEIGHTS, lambda file: save_tensors(tensors, file))
    _replace(directory / CARD, lambda file: file.write_text(json.dumps(card, indent=2) + "\n"))


def save_adapted(backbone: nn.Module, directory: Path, card: dict[str, Any]) -> None:
    """Write a backbone with an adapter: ``adapter.safetensors`` alone, and as `save_backbone` with LoRA merged.

    An AdaptFormer cannot be merged; its tensors stand in ``backbone.safetensors``, and `load_backbone` builds it.

    Args:
        backbone: The module with its adapter.
        directory: The run directory.
        card: Card with ``adapter``, its settings and the weights that it began with.
    """
    unmerged = adapter_card(backbone)
    settings = card["adapter"]
    if ADAPTFORMER in settings["name"]:  # not that of the weights that it began with
        settings = settings | {"width": unmerged[ADAPTFORMER]}
    tensors = {name: value.cpu() for name, value in adapter_tensors(backbone).items()}
    metadata = {"adapter": json.dumps(settings)}
    _replace(directory / ADAPTER, lambda file: save_tensors(tensors, file, metadata))
    save_backbone(merged(backbone), directory, card | unmerged)
    if unmerged:
        log.warning(
            "an AdaptFormer cannot be merged into a network without one: %s holds its tensors too, and load_backbone "
            "builds it",
            directory / WEIGHTS,
        )


def load_adapter(backbone: nn.Module, file: Path, *, image_size: int) -> nn.Module:
    """Put a saved adapter onto the weights that it began with; changed in place, in eval mode.

    Args:
        backbone: The pretrained backbone, as `sslgh.models.initial.initial_backbone` gives it.
        file: ``adapter.safetensors`` of a run.
        image_size: Side of its input (pixels).

    Raises:
        ValueError: If the file holds no adapter, or one of another network.
    """
    try:
        with _readable(file), safe_open(file, framework="pt") as opened:
            settings = json.loads((opened.metadata() or {})["adapter"])
        settings.pop("init")
        adapter = Adapter(**settings)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds no adapter ({str(error).splitlines()[0]})") from None
    add_adapter(backbone, adapter, image_size=image_size)
    tensors, own = _tensors(file), adapter_tensors(backbone)
    shapes = [{name: value.shape for name, value in each.items()} for each in (tensors, own)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{file} is the adapter of another network than {type(backbone).__name__}")
    backbone.load_state_dict(tensors, strict=False)
    return backbone.eval()


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions of any new file; the library gives them to the owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    with suppress(OSError):  # some network file systems refuse it
        path.chmod(mode)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, flush it, rename it: if that fails, what was there stays."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]})") from None
    temporary.replace(path)


def load_backbone(
    directory: Path, *, image_size: int | None = None, module: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone of a run, in eval mode, and its card.

    In training mode the features of an image would depend on its batch. The card's ``preprocess`` makes its input of
    a PIL image, or of uint8 pixels (N, 3, S, S).

    Args:
        directory: The run directory.
        image_size: Side (pixels) that a transformer is to be made for; None: that of its training.
        module: Module to load the weights into, where a run trained one of your own; None: built by the card.

    Raises:
        ValueError: If the directory holds no backbone, or one that does not fit its card.
    """
    card = read_card(directory)
    name, size = card["backbone"], card["image_size"]
    patch = card.get("patch")  # cards of runs before there was one have none
    build = partial(_built, card)
    # A library's own models are as large as their name says, and not all build without memory.
    if module is None and not name.startswith((TIMM, TORCHVISION)):
        _check_shapes(directory / WEIGHTS, name, build)
    backbone = build() if module is None else with_features(module, size)
    try:
        backbone.load_state_dict(_tensors(directory / WEIGHTS))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{directory / WEIGHTS} is not a {name}: {reason}") from None
    if image_size not in (None, size) and module is None:
        resize_backbone(backbone, name, patch=patch, image_size=image_size)
    preprocessing = Preprocessing.from_card(card | {"image_size": image_size or size})
    backbone.preprocessing = preprocessing  # type: ignore[assignment]
    return backbone.eval(), card | {"preprocess": preprocessing}


def _built(card: dict[str, Any]) -> nn.Module:
    shape: dict[str, Any] = {key: card.get(key) for key in ("stem", "width", "patch", "image_size")}
    backbone = build_backbone(card["backbone"], **shape)
    if ADAPTFORMER in card:
        add_adaptformers(backbone, card[ADAPTFORMER], image_size=card["image_size"])
    return backbone


def _check_shapes(path: Path, name: str, build: Callable[[], nn.Module]) -> None:
    """Refuse weights that do not fit their card before it is built: a few bytes can ask for petabytes."""
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in build().state_dict().items()}
    with _readable(path), safe_open(path, framework="pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for key in [*expected, *found]:
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"{path} is not a {name} as {CARD} describes it: {key} is {found.get(key, 'missing')}, "
                f"expected {expected.get(key, 'nothing')}; take both files from one run"
            )


def _tensors(path: Path) -> dict[str, Tensor]:
    with _readable(path):
        return load_file(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read ({reason}); copy it from its run again, or train again"
        ) from None


def run_of(init: object) -> Path | None:
    """The run directory that ``model.init`` names, itself or by its file of weights; None if it is not one."""
    path = Path(str(init)).expanduser()
    path = path.parent if path.name == WEIGHTS else path
    return path if all((path / name).is_file() for name in (CARD, WEIGHTS)) else None


def read_card(directory: Path) -> dict[str, Any]:
    """The card of a run's backbone.

    Raises:
        ValueError: If the directory holds none, or one that describes no backbone.
    """
    path = directory / CARD
    if not path.is_file():
        raise ValueError(f"{directory} holds no {CARD}; a run writes it when training is done")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        _check_card(card)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} describes no backbone ({error}); copy it from its run again, or train again"
        ) from None
    return dict(card)


def _check_card(card: Any) -> None:
    """Refuse what no backbone can be built from.

    Raises:
        ValueError: With what is wrong, in a few words.
    """
    if not isinstance(card, dict):
        raise ValueError("it is no mapping")
    fields: dict[str, Callable[[Any], bool]] = {
        "backbone": lambda value: isinstance(value, str),
        "stem": lambda value: value in ("cifar", "imagenet"),
        "width": lambda value: type(value) in (int, float) and 0 < value <= MOST_WIDTH,
        "image_size": lambda value: value is None or _is_side(value),
        "patch": lambda value: value is None or _is_side(value),
        ADAPTFORMER: lambda value: value is None or _is_side(value),
    }
    for key, fits in fields.items():
        if key not in card and key not in OPTIONAL:
            raise ValueError(f"{key} is missing")
        if not fits(card.get(key)):
            raise ValueError(f"{key} is {str(card[key])[:40]!r}")
    Preprocessing.from_card(card)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_SIDE


def save_classifier(
    classifier: nn.Linear | CosineClassifier, directory: Path, class_names: Sequence[str]
) -> None:
    """Write ``classifier.safetensors``: ``weight`` (C, F), and ``bias`` (C,) or the ``scale`` of cosines.

    The names of its C rows are written to ``classifier.json``.
    """
    text = json.dumps({"class_names": list(class_names)}, indent=2) + "\n"
    _replace(directory / CLASSES, lambda file: file.write_text(text, encoding="utf-8"))
    tensors = {name: value.detach().cpu() for name, value in classifier.state_dict().items()}
    if isinstance(classifier, CosineClassifier):
        tensors["scale"] = Tensor([classifier.scale])
    _replace(directory / CLASSIFIER, lambda file: save_tensors(tensors, file))


def load_classifier(
    directory: Path, *, image_size: int | None = None
) -> tuple[nn.Sequential, dict[str, Any]]:
    """The network of a finetuned run, in eval mode, (N, 3, H, W) to logits (N, C), and its card.

    The card is that of `load_backbone` with ``class_names``, the C names of the logits. The images are expected as
    there: normalized by the card's ``mean`` and ``std``, best with ``image_size`` pixels a side.

    Args:
        directory: The run directory.
        image_size: As for `load_backbone`.

    Raises:
        ValueError: If the directory holds no network, or files that do not fit each other.

    Examples:
        >>> network, card = load_classifier(Path("runs/mine"))  # doctest: +SKIP
        >>> card["class_names"][network(images).argmax(1)[0]]  # doctest: +SKIP
        'cat'
    """
    backbone, card = load_backbone(directory, image_size=image_size)
    head = load_head(directory)
    classes, features = head.weight.shape
    if features != backbone.num_features:
        raise ValueError(
            f"{directory / CLASSIFIER} takes {features} features and {WEIGHTS} gives {backbone.num_features}; take both "
            "files from one run"
        )
    names = _class_names(directory, classes)
    return nn.Sequential(backbone, head).eval(), card | {"class_names": names}


def _class_names(directory: Path, classes: int) -> list[str]:
    """The names of a classifier's rows; their numbers if no file names them."""
    for path in (directory / file for file in NAMES if (directory / file).is_file()):
        try:
            names = list(json.loads(path.read_text(encoding="utf-8"))["class_names"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{path} cannot be read; copy it from its run again") from None
        if names and len(names) != classes:
            raise ValueError(
                f"{path} names {len(names)} classes and {CLASSIFIER} has {classes}; take both files from one run"
            )
        if names:
            return names
    return [str(label) for label in range(classes)]


def load_head(directory: Path) -> nn.Linear | CosineClassifier:
    """The last layer of a finetuned run: (N, F) to (N, C).

    Raises:
        ValueError: If the directory holds none, or what is no classifier.
    """
    path = directory / CLASSIFIER
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no {CLASSIFIER}; sslgh finetune writes it when it is done"
        )
    tensors = _tensors(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    classes, features = (*shapes.get("weight", ()), 0, 0)[:2]
    rest = {"scale": (1,)} if "scale" in shapes else {"bias": (classes,)}
    if shapes != {"weight": (classes, features)} | rest or not classes * features:
        raise ValueError(
            f"{path} is no classifier, but holds {str(shapes)[:200]}; copy it from its run again, or "
            "finetune again"
        )
    classifier: nn.Linear | CosineClassifier = nn.Linear(features, classes)
    if "scale" in tensors:
        scale = tensors.pop("scale").item()
        classifier = CosineClassifier(features, classes, scale=scale)
    classifier.load_state_dict(tensors)
    return classifier
