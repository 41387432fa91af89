"""Probes of a frozen backbone, or of anyone's features.

Shapes: N images, F features, C classes.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sslgh.classify import OBJECTIVES, train_heads
from sslgh.classify.objectives import EMBEDDING_TEMPERATURE, EMBEDDING_WEIGHT
from sslgh.data import DataError, ImageSet, input_size
from sslgh.evaluation.features import cached_features
from sslgh.evaluation.protocols import (
    NEIGHBOUR_TEMPERATURE,
    PROTOCOLS,
    Protocol,
    labelled_images,
    objectives,
    training_images,
    training_rows,
)
from sslgh.evaluation.results import Result, Scores, write_results
from sslgh.evaluation.scoring import group_tightness, score
from sslgh.functional.neighbours import nearest_neighbour_votes
from sslgh.recipe.schema import Data, Probe, Recipe

MOST_WORKERS = 8


class Features(NamedTuple):
    """Features (N, F) with their labels (N,)."""

    values: Tensor
    labels: Tensor


class Classes(NamedTuple):
    """The classes of a data set: their names, and their images in pretraining, shape (C,)."""

    names: tuple[str, ...]
    counts: Tensor


def check_probes(data: Data, probes: Sequence[Probe]) -> None:
    """Refuse probes that the data cannot serve; worth calling before an hour of pretraining.

    Raises:
        DataError: One sentence with the way out.
    """
    if not probes:
        return
    images = labelled_images(data)
    for probe in probes:
        train = training_images(PROTOCOLS[probe.protocol], images)
        _check_neighbours(probe, len(train))


def probe_backbone(
    backbone: nn.Module, recipe: Recipe, *, directory: Path, accelerator: Accelerator
) -> list[Result]:
    """Run the probes of a recipe and write ``directory/probe/*.json``.

    All processes extract features; the main one trains the heads, the others wait for it.

    Args:
        backbone: (N, 3, S, S) to (N, F); stays as it is.
        recipe: Its ``data`` and ``probe`` sections count.
        directory: The run directory; features are cached in it.
        accelerator: The processes and the device.

    Returns:
        One result for each probe, the same on all processes.

    Raises:
        DataError: If the data have no labels, no test set, or too few images for a protocol.
        ValueError: If features or labels cannot be used.
    """
    if not recipe.probe:
        return []
    images = labelled_images(recipe.data)
    names = images.whole.class_names
    size = input_size(recipe.data, images.whole)

    def features(part: ImageSet, *, weak: bool = False) -> Features | None:
        workers = _workers(recipe.data, part)
        values = cached_features(
            backbone,
            part,
            size=size,
            weak=weak,
            directory=directory,
            accelerator=accelerator,
            workers=workers,
        )
        return None if values is None else Features(values, torch.from_numpy(part.labels))

    # Every set is chosen, and refused, before the first image goes through the network.
    chosen = [training_images(PROTOCOLS[probe.protocol], images) for probe in recipe.probe]
    for probe, part in zip(recipe.probe, chosen, strict=True):
        _check_neighbours(probe, len(part))
    test = features(images.test)
    classes = Classes(names, torch.from_numpy(images.longtail.class_counts))
    results: list[Result] = []
    for probe, part in zip(recipe.probe, chosen, strict=True):
        train = features(part, weak=PROTOCOLS[probe.protocol].weak)
        if train is not None and test is not None:
            results.append(_run(probe, train, test, classes, accelerator.device))
    if accelerator.is_main_process:
        write_results(results, directory)
    shared = [results]
    broadcast_object_list(shared)
    return shared[0]


def probe_features(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    probes: Sequence[Probe],
    *,
    directory: Path,
    class_counts: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | None = None,
) -> list[Result]:
    """Run probes on features that come from anywhere, in this process.

    Training features are taken as they are: whether a view was augmented is the file's affair.

    Args:
        train_features: Shape (N, F).
        train_labels: Shape (N,), integers from 0.
        test_features: Shape (M, F).
        test_labels: Shape (M,).
        probes: What to run.
        directory: Results go to ``directory/probe/*.json``.
        class_counts: Shape (C,), images by which classes are many-, medium- or few-shot; None: those of
            the training labels.
        class_names: C names; None: numbers.
        device: Where heads train; None: the CPU.

    Raises:
        DataError: If a class holds too few images for a protocol.
        ValueError: If features or labels cannot be used, or the counts are not one a class.
    """
    train, test = Features(train_features, train_labels), Features(test_features, test_labels)
    if class_counts is None:
        num_classes = 1 + int(max(train.labels.max(), test.labels.max()))
        class_counts = torch.bincount(train.labels, minlength=num_classes)
    names = tuple(class_names or (str(c) for c in range(len(class_counts))))
    if len(names) != len(class_counts):
        raise ValueError(
            f"class_counts are for {len(class_counts)} classes, class_names for {len(names)}"
        )
    classes = Classes(names, class_counts)
    results = []
    for probe in probes:
        rows = training_rows(PROTOCOLS[probe.protocol], train.labels.numpy(), names)
        part = train if rows is None else Features(train.values[rows], train.labels[rows])
        _check_neighbours(probe, len(part.labels))
        results.append(_run(probe, part, test, classes, device or torch.device("cpu")))
    write_results(results, directory)
    return results


def _run(
    probe: Probe, train: Features, test: Features, classes: Classes, device: torch.device
) -> Result:
    protocol = PROTOCOLS[probe.protocol]
    train, test = (Features(*(part.to(device) for part in pair)) for pair in (train, test))
    counts = classes.counts.to(device)
    if protocol.heads is None:
        scores = {"knn": score(_neighbours(probe, train, test, len(counts)), test.labels, counts)}
    else:
        scores = _train(probe, protocol, train, test, counts)
    pairs = {"train": train, "test": test}
    return Result(
        protocol=protocol.name,
        version=protocol.version,
        summary=protocol.summary,
        settings=_settings(probe, protocol),
        class_names=list(classes.names),
        group_counts=counts.tolist(),
        train_counts=torch.bincount(train.labels, minlength=len(counts)).tolist(),
        test_counts=torch.bincount(test.labels, minlength=len(counts)).tolist(),
        scores=scores,
        tightness={
            name: group_tightness(part.values[None], part.labels, counts)
            for name, part in pairs.items()
        },
    )


def _neighbours(probe: Probe, train: Features, test: Features, num_classes: int) -> Tensor:
    votes = nearest_neighbour_votes(
        test.values,
        train.values,
        train.labels,
        num_classes=num_classes,
        neighbours=probe.neighbours,
        temperature=NEIGHBOUR_TEMPERATURE,
    )
    return votes.argmax(1)[None]


def _train(
    probe: Probe, protocol: Protocol, train: Features, test: Features, counts: Tensor
) -> dict[str, Scores]:
    assert protocol.heads is not None
    heads = train_heads(
        train.values,
        train.labels,
        num_classes=len(counts),
        objectives=objectives(protocol, probe),
        training=protocol.heads,
        tau=probe.tau,
        seeds=probe.seeds,
        progress=True,
    )
    scores = {}
    for name in heads.objectives:
        found = score(heads.predict(name, test.values), test.labels, counts)
        tightness = {
            split: group_tightness(embeddings, part.labels, counts)
            for split, part in (("train", train), ("test", test))
            if (embeddings := heads.embeddings(name, part.values)) is not None
        }
        scores[name] = Scores(found.metrics, found.class_accuracy, tightness or None)
    return scores


def _settings(probe: Probe, protocol: Protocol) -> dict[str, object]:
    """All that was set, and nothing that this protocol does not read."""
    settings = asdict(protocol)
    if protocol.heads is None:
        return settings | {"neighbours": probe.neighbours, "temperature": NEIGHBOUR_TEMPERATURE}
    names = objectives(protocol, probe)
    settings |= {"objectives": list(names), "seeds": probe.seeds}
    if names != ("ce",):
        settings["tau"] = probe.tau
    if any(OBJECTIVES[name].embedding_loss for name in names):
        settings |= {
            "embedding_weight": EMBEDDING_WEIGHT,
            "embedding_temperature": EMBEDDING_TEMPERATURE,
        }
    return settings


def _check_neighbours(probe: Probe, images: int) -> None:
    if PROTOCOLS[probe.protocol].heads is None and probe.neighbours > images:
        raise DataError(
            f"probe knn asks {probe.neighbours} neighbours to vote, but there are {images} training images; lower "
            "neighbours"
        )


def _workers(data: Data, images: ImageSet) -> int:
    if data.workers is not None:
        return data.workers
    if images.in_memory:
        return 0
    cores = os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
