"""Weights from anyone's file into a backbone: names are matched by what they end with.

A file may hold a state dict, or a checkpoint with optimizer and more around it, under names with any prefix:
``module.``, ``backbone.``, ``encoder_q.``, ``student.``, of lightly, solo-learn, MoCo, DINO, timm or torchvision.
"""

import argparse
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sslgh.models.adapters import ADAPTFORMER

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
# Least share of a backbone's tensors that a file must hold; those of another shape are drawn only if less is asked for.
LEAST = 0.9
# The way out of a file that does not fit, as a recipe names it.
REMEDY = "set model.backbone, model.stem, model.width, model.patch and a transformer's data.size to those that it was saved from"
# If two networks fit equally well, the one that is used for evaluation is loaded: MoCo's query encoder and the online networks
# of solo-learn and lightly, not their momentum copies; DINO's teacher, not its student.
SECOND_CHOICE = ("momentum", "encoder_k", "student", "target")
Shapes = Mapping[str, tuple[int, ...]]


class LoadReport(NamedTuple):
    """What a file gave to a backbone.

    Attributes:
        path: The file.
        prefix: What the names of its tensors begin with, the final dot included; "" for none.
        loaded: Names of the backbone's tensors that were loaded.
        missing: Names of those that the file lacks.
        misfits: Names of those that have another shape in the file.
        left_over: Names of tensors under the prefix that the backbone has no place for, such as a classifier.
    """

    path: Path
    prefix: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    misfits: tuple[str, ...]
    left_over: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the backbone's tensors that were loaded."""
        return len(self.loaded) / self.total

    @property
    def total(self) -> int:
        """Number of the backbone's tensors."""
        return len(self.loaded) + len(self.missing) + len(self.misfits)

    def __str__(self) -> str:
        under = f" under {self.prefix!r}" if self.prefix else ""
        parts = [f"{self.path}: {len(self.loaded)} of {self.total} tensors loaded{under}"]
        for names, what in (
            (self.missing, "missing"),
            (self.misfits, "of another shape"),
            (self.left_over, "left over"),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                parts.append(f"{what}: {names[0]}{more}")
        return "; ".join(parts)


def load_weights(backbone: nn.Module, path: Path, *, least: float = LEAST) -> LoadReport:
    """Load a file's tensors into a backbone, in place.

    Args:
        backbone: The module; tensors that the file lacks keep their values.
        path: A .safetensors file, or one that ``torch.save`` wrote; code in it is never executed.
        least: Share of the backbone's tensors that must be found, in 0..1. Below `LEAST` tensors of another shape
            are left as they were too; else they are refused.

    Raises:
        ValueError: If the file cannot be read, less of the backbone than ``least`` is found in it, or it holds
            AdaptFormers, which a backbone alone has no place for.
    """
    report, held = matched(backbone, read_tensors(path), path)
    own = backbone.state_dict()
    if any(f".{ADAPTFORMER}." in name for name in report.left_over):
        raise ValueError(
            f"{path} holds AdaptFormers, which are no part of {type(backbone).__name__}; set model.init to the run "
            "directory that it was written to, whose card builds them"
        )
    misfits = report.misfits and least >= LEAST
    if report.share < least or misfits or not report.loaded:
        raise ValueError(_refusal(report, own, held, whole=least == 1))
    fitting = {name: value for name, value in held.items() if value.shape == own[name].shape}
    backbone.load_state_dict(fitting, strict=False)
    return report


def matched(
    backbone: nn.Module, found: Mapping[str, Tensor], path: Path
) -> tuple[LoadReport, dict[str, Tensor]]:
    """What the tensors of a file would give to a backbone, and those of them that have its names.

    Args:
        backbone: The module, which may lie on the meta device; nothing is loaded.
        found: Tensors by their names in the file.
        path: The file, for the report.
    """
    own = backbone.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items()}
    names, prefix = _best_names(expected, found, backbone)
    held = {name: found[source] for name, source in names.items() if source in found}
    fitting = {name for name, value in held.items() if value.shape == own[name].shape}
    # Checkpoints of old torch have no counters, and nothing reads them while momentum is set.
    asked = [name for name in own if not name.endswith("num_batches_tracked")]
    report = LoadReport(
        path,
        prefix,
        loaded=tuple(name for name in asked if name in fitting),
        missing=tuple(name for name in asked if name not in held),
        misfits=tuple(name for name in asked if name in held and name not in fitting),
        left_over=tuple(
            name for name in found if name.startswith(prefix) and name not in names.values()
        ),
    )
    return report, held


def _refusal(
    report: LoadReport, own: Mapping[str, Tensor], held: Mapping[str, Tensor], *, whole: bool
) -> str:
    wrong = (*report.misfits, *report.missing)[0]
    there = tuple(held[wrong].shape) if wrong in held else "missing"
    frozen = ", where all are needed, as they stay frozen" if whole else ""
    return (
        f"{report.path} fits {len(report.loaded)} of the backbone's {report.total} tensors{frozen}: {wrong} is "
        f"{tuple(own[wrong].shape)} in the backbone and {there} in the file; {REMEDY}"
    )


def _best_names(
    expected: Shapes, found: Mapping[str, Tensor], backbone: nn.Module
) -> tuple[dict[str, str], str]:
    """The name in the file of each tensor of a backbone, and their prefix: where most of them fit."""
    best: tuple[tuple[int, int], dict[str, str], str] = ((-1, 0), {}, "")
    for layout in _layouts(backbone, expected):
        fits: Counter[str] = Counter()
        for source, value in found.items():
            for prefix, name in _splits(source):
                # A shape that differs counts little, so that its name is found and reported.
                if (own := layout.get(name)) is not None:
                    fits[prefix] += 100 if tuple(value.shape) == expected[own] else 1
        for prefix, count in fits.items():
            score = (count, -sum(word in prefix for word in SECOND_CHOICE))
            if score > best[0]:
                best = score, {own: prefix + name for name, own in layout.items()}, prefix
    return best[1], best[2]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """All ways to take a dotted name apart into a prefix, with its dot, and the rest."""
    parts = name.split(".")
    for count in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:count]), ".".join(parts[count:])


def _layouts(backbone: nn.Module, expected: Shapes) -> Iterator[dict[str, str]]:
    """The backbone's own name by the name in a file: as it is, and with its children numbered.

    lightly puts the children of a network into one ``nn.Sequential``: all of torchvision's ResNet, of its own
    ResNet those that hold weights.
    """
    yield {name: name for name in expected}
    children = [name for name, _ in backbone.named_children()]
    heavy = [name for name, child in backbone.named_children() if child.state_dict()]
    for names in (children, heavy):
        number = {name: str(position) for position, name in enumerate(names)}
        yield {
            ".".join([number.get(head, head), *rest]): name
            for name in expected
            for head, *rest in [name.split(".")]
        }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by their dotted names, on the CPU.

    Raises:
        ValueError: If the file is missing, damaged, holds code or no tensors.
    """
    try:
        content = _read(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise ValueError(f"{path} cannot be read as weights ({reason[:200]})") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise ValueError(f"{path} cannot be read as weights (it is no checkpoint)") from None
        raise ValueError(
            f"{path} holds Python objects besides tensors, which could run code and are not loaded; save its "
            "state dict instead: torch.save(model.state_dict(), FILE)"
        ) from None
    if not (tensors := dict(_flatten(content))):
        raise ValueError(f"{path} holds no tensors by name; save a state dict")
    return tensors


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    # DINO, MoCo and others keep their command line with the weights; a Namespace runs no code.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
            else:
                yield from _flatten(value, f"{prefix}{key}.")
