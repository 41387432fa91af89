"""Refusals of probes and features, before anything is extracted or trained.

Shapes: N images, F features.
"""

import torch
from torch import Tensor

from sslgh.classify import OBJECTIVES
from sslgh.classify.objectives import check_shares
from sslgh.data import DataError
from sslgh.evaluation.protocols import PROTOCOLS, Protocol, objectives
from sslgh.recipe import RecipeError
from sslgh.recipe.schema import Probe


def check_probe(probe: Probe, *, num_classes: int, images: int) -> None:
    """Refuse a probe that cannot run.

    Args:
        probe: The probe.
        num_classes: Classes of the data.
        images: Training images of its protocol.

    Raises:
        RecipeError: If its settings do not go together.
        DataError: If there are too few images.
    """
    protocol = PROTOCOLS[probe.protocol]
    _check_settings(probe, protocol)
    _check_test_prior(probe, protocol, num_classes)
    several = max(map(len, (probe.tau, probe.lr, probe.weight_decay))) > 1
    if several and probe.folds > images:
        raise DataError(
            f"probe {protocol.name} asks for {probe.folds} folds of {images} training images; lower folds"
        )
    if protocol.heads is None and probe.neighbors > images:
        raise DataError(
            f"probe knn asks {probe.neighbors} neighbors to vote, but there are {images} training images; lower "
            "neighbors"
        )


def _read(protocol: Protocol) -> tuple[str, ...]:
    if protocol.heads is None:
        return ("neighbors",)
    if protocol.train != "longtail":
        return ("seeds",)  # the rest is the paper's
    return tuple(name for name in Probe.model_fields if name not in {"protocol", "neighbors"})


def _check_settings(probe: Probe, protocol: Protocol) -> None:
    for name, field in Probe.model_fields.items():
        # By value: a resolved recipe, as a run keeps it, sets every key.
        given = getattr(probe, name)
        trained = name == "objectives" and given == objectives(protocol, probe)
        if name in {"protocol", *_read(protocol)} or given == field.default or trained:
            continue
        raise RecipeError(
            f"probe {protocol.name} does not read {name}, but only {', '.join(_read(protocol))}; leave {name} out"
        )


def _check_test_prior(probe: Probe, protocol: Protocol, num_classes: int) -> None:
    if probe.test_prior == "objective":
        return
    if fixed := [name for name in objectives(protocol, probe) if not OBJECTIVES[name].shifts]:
        able = [name for name, objective in OBJECTIVES.items() if objective.shifts]
        raise RecipeError(
            f"test_prior cannot be reached by {', '.join(fixed)}, whose scores are no posterior of known class "
            f"shares; leave test_prior out or use {', '.join(able)}"
        )
    if isinstance(probe.test_prior, str):
        return
    if len(probe.test_prior) != num_classes:
        raise RecipeError(
            f"test_prior has {len(probe.test_prior)} class shares, but there are {num_classes} classes; give one a class"
        )
    try:
        check_shares(torch.tensor(probe.test_prior))
    except ValueError as error:
        raise RecipeError(f"test_prior: {error}") from error


def check_features(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    """Refuse features that no classifier could be trained on and judged by.

    Args:
        train: Features (N, F) and labels (N,).
        test: The same of the test set.

    Raises:
        ValueError: If shapes do not fit, the sets differ in width, features are not finite, or classes disagree.
    """
    for split, (values, labels) in (("training", train), ("test", test)):
        _check_split(split, values, labels)
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"training features are {train[0].shape[1]} wide and test features {test[0].shape[1]}; take both from one "
            "backbone"
        )
    if not torch.isin(test[1].cpu(), train[1].cpu()).any():
        raise ValueError(
            f"no test image is of a trained class: training labels are {_range(train[1])}, test labels "
            f"{_range(test[1])}; number the classes of both sets alike"
        )


def _check_split(split: str, values: Tensor, labels: Tensor) -> None:
    if values.ndim != 2 or labels.shape != values.shape[:1] or len(values) == 0:
        raise ValueError(
            f"{split} features and labels must be (N, F) and (N,), N >= 1, got {tuple(values.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{split} labels must be integers, got {labels.dtype}")
    if int(labels.min()) < 0:
        raise ValueError(f"{split} labels must count from 0, got {_range(labels)}")
    if broken := int((~values.isfinite()).any(1).sum()):
        raise ValueError(f"{broken} of {len(values)} rows of the {split} features hold nan or inf")


def _range(labels: Tensor) -> str:
    return f"{int(labels.min())}..{int(labels.max())}"
