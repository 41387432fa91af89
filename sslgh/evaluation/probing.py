"""Probes of a frozen backbone, or of anyone's features.

Shapes: N images, F features, C classes.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sslgh.classify import Head, HeadEnsemble, train_heads
from sslgh.data import ImageSet, input_size
from sslgh.evaluation.checks import check_features, check_probe
from sslgh.evaluation.features import cached_features
from sslgh.evaluation.probe_settings import candidates, choose, expected_prior, settings_of
from sslgh.evaluation.protocols import (
    NEIGHBOR_TEMPERATURE,
    PROTOCOLS,
    LabeledImages,
    Protocol,
    labeled_images,
    training_images,
    training_rows,
)
from sslgh.evaluation.results import Result, Scores, write_results
from sslgh.evaluation.scoring import (
    answers,
    evaluate_scores,
    group_tightness,
    judge_answers,
    rows_at_once,
)
from sslgh.evaluation.settings import probe_settings
from sslgh.evaluation.unreadable import unreadable_names, without
from sslgh.functional.neighbors import nearest_neighbor_votes
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Probe, Recipe

log = logging.getLogger(__name__)

MAX_WORKERS = 8
# Test images that heads score at once.
MOST_ROWS = 8192


class Features(NamedTuple):
    """Features (N, F) with their labels (N,)."""

    values: Tensor
    labels: Tensor


class Classes(NamedTuple):
    """The classes of a data set: their names, and their images in pretraining, shape (C,)."""

    names: tuple[str, ...]
    counts: Tensor


def check_probes(data: Data, probes: Sequence[Probe], directory: Path | None = None) -> None:
    """Refuse probes that cannot run on the data; worth calling before an hour of pretraining.

    Args:
        data: Of the recipe.
        probes: What is to run.
        directory: Of the run, which may have begun; None: as if it had not.

    Raises:
        DataError: If the data cannot serve them: one sentence with the way out.
        RecipeError: If the settings of one do not go together.
    """
    if not probes:
        return
    _chosen_images(probes, labeled_images(data, directory))


def probe_backbone(
    backbone: nn.Module, recipe: Recipe, *, directory: Path, accelerator: Accelerator
) -> list[Result]:
    """Run the probes of a recipe and write ``directory/probe/*.json``.

    All processes extract features; the main one trains the heads, the others wait for it.

    Args:
        backbone: (N, 3, S, S) to (N, F); stays as it is.
        recipe: Its ``data`` and ``probe`` sections count.
        directory: The run directory; features are cached in it. Where a run has recorded its images they are
            those of pretraining, unless ``data`` asks for others.
        accelerator: The processes and the device.

    Returns:
        One result for each probe, the same on all processes.

    Raises:
        DataError: If the data have no labels, no test set, or too few images for a protocol; if an image
            cannot be read, unless it is one of training that the run has met and named.
        RecipeError: If the settings of a probe do not go together.
        ValueError: If features or labels cannot be used.
    """
    if not recipe.probe:
        return []
    images = labeled_images(recipe.data, directory)
    print_stderr(images.said, accelerator)
    size = input_size(recipe.data, images.whole)

    def features(part: ImageSet, *, weak: bool = False) -> Features | None:
        workers = loader_workers(recipe.data, part)
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
    chosen = _chosen_images(recipe.probe, images)
    broken = unreadable_names(images.whole, directory, accelerator)
    test = features(images.test)
    classes = Classes(images.whole.class_names, torch.from_numpy(images.class_counts))
    results: list[Result] = []
    for probe, part in zip(recipe.probe, chosen, strict=True):
        train = features(without(part, broken), weak=PROTOCOLS[probe.protocol].weak)
        if train is not None and test is not None:
            results.append(_run(probe, train, test, classes, accelerator.device))
    if accelerator.is_main_process:
        write_results(results, directory)
    shared = [results]
    broadcast_object_list(shared)
    return shared[0]


def _chosen_images(probes: Sequence[Probe], images: LabeledImages) -> list[ImageSet]:
    """The training images of every probe, all of them checked."""
    chosen = [training_images(PROTOCOLS[probe.protocol], images) for probe in probes]
    for probe, part in zip(probes, chosen, strict=True):
        check_probe(probe, num_classes=len(images.whole.class_names), images=len(part))
    return chosen


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
        class_names: C names; None: numbers. Without names or counts C is one more than the largest label.
        device: Where heads train; None: the CPU.

    Raises:
        DataError: If a class holds too few images for a protocol.
        RecipeError: If the settings of a probe do not go together.
        ValueError: If features or labels cannot be used, their classes or widths disagree, or the counts are not one
            a class.
    """
    train, test = Features(train_features, train_labels), Features(test_features, test_labels)
    check_features(train, test)
    classes = _classes(train.labels, test.labels, class_counts, class_names)
    parts = []
    for probe in probes:
        labels = train.labels.cpu().numpy()
        rows = training_rows(PROTOCOLS[probe.protocol], labels, classes.names)
        parts.append(train if rows is None else Features(train.values[rows], train.labels[rows]))
        check_probe(probe, num_classes=len(classes.names), images=len(parts[-1].labels))
    results = [
        _run(probe, part, test, classes, device or torch.device("cpu"))
        for probe, part in zip(probes, parts, strict=True)
    ]
    write_results(results, directory)
    return results


def _classes(
    train_labels: Tensor,
    test_labels: Tensor,
    counts: Tensor | None,
    names: Sequence[str] | None,
) -> Classes:
    """The classes as given, or as the labels have them."""
    seen = 1 + max(int(train_labels.max()), int(test_labels.max()))
    size = len(names) if names is not None else seen if counts is None else len(counts)
    if seen > size:
        raise ValueError(
            f"labels reach {seen - 1}, but there are {size} classes by class_names or class_counts; number the "
            "classes from 0"
        )
    if counts is None:
        counts = torch.bincount(train_labels, minlength=size)
    if len(counts) != size:
        raise ValueError(f"class_counts are for {len(counts)} classes, class_names for {size}")
    return Classes(tuple(names or map(str, range(size))), counts)


def _run(
    probe: Probe, train: Features, test: Features, classes: Classes, device: torch.device
) -> Result:
    protocol = PROTOCOLS[probe.protocol]
    train, test = (Features(*(part.to(device) for part in pair)) for pair in (train, test))
    counts = classes.counts.to(device)
    chosen: dict[str, dict[str, float | None]] = {}
    if protocol.heads is None:
        votes = _votes(probe, train, test, len(counts))
        scores = {"knn": evaluate_scores(votes[None], test.labels, counts)}
    else:
        found = candidates(protocol, probe)
        heads = choose(found, *train, num_classes=len(counts), probe=probe, protocol=protocol)
        chosen = {n: settings_of(head, protocol) for n, head in heads.items() if len(found[n]) > 1}
        scores = _train(probe, protocol, heads, train, test, counts)
    pairs = {"train": train, "test": test}
    return Result(
        protocol=protocol.name,
        version=protocol.version,
        summary=protocol.summary
        + ("; lr or decay as set" if probe.lr or probe.weight_decay else ""),
        settings=probe_settings(probe, protocol),
        class_names=list(classes.names),
        group_counts=counts.tolist(),
        train_counts=torch.bincount(train.labels, minlength=len(counts)).tolist(),
        test_counts=torch.bincount(test.labels, minlength=len(counts)).tolist(),
        scores=scores,
        tightness={
            name: group_tightness(part.values[None], part.labels, counts, test_labels=test.labels)
            for name, part in pairs.items()
        },
        chosen=chosen,
    )


def _votes(probe: Probe, train: Features, test: Features, num_classes: int) -> Tensor:
    """Log of the shares of the votes, (N, C): their softmax is the shares again."""
    votes = nearest_neighbor_votes(
        test.values,
        train.values,
        train.labels,
        num_classes=num_classes,
        neighbors=probe.neighbors,
        temperature=NEIGHBOR_TEMPERATURE,
    )
    # In float64, where the logarithm keeps different shares apart.
    return votes.double().log()


def _train(
    probe: Probe,
    protocol: Protocol,
    chosen: Mapping[str, Head],
    train: Features,
    test: Features,
    counts: Tensor,
) -> dict[str, Scores]:
    """Train all heads at once and judge them."""
    assert protocol.heads is not None
    trained = train_heads(
        train.values,
        train.labels,
        num_classes=len(counts),
        heads=list(chosen.values()),
        training=protocol.heads,
        seeds=probe.seeds,
        progress=True,
    )
    prior = expected_prior(probe, trained.prior)
    scores = {}
    for name, head in chosen.items():
        found = _judge_head(trained, head, test, counts, prior, seeds=probe.seeds)
        tightness = {
            split: group_tightness(embeddings, part.labels, counts, test_labels=test.labels)
            for split, part in (("train", train), ("test", test))
            if (embeddings := trained.embeddings(head, part.values)) is not None
        }
        scores[name] = replace(found, tightness=tightness or None)
    return scores


def _judge_head(
    trained: HeadEnsemble,
    head: Head,
    test: Features,
    counts: Tensor,
    prior: Tensor | None,
    *,
    seeds: int,
) -> Scores:
    rows = min(MOST_ROWS, rows_at_once(seeds * len(counts)))
    parts = torch.split(test.values, rows)
    found = answers(trained.scores(head, part, test_prior=prior) for part in parts)
    return judge_answers(found, test.labels, counts, weight_norms=trained.weight_norms(head))


def print_stderr(sentences: Sequence[str], accelerator: Accelerator) -> None:
    """Say what has changed since the run began, on the main process alone."""
    if accelerator.is_main_process:
        for sentence in sentences:
            log.warning("%s", sentence)


def loader_workers(data: Data, images: ImageSet) -> int:
    """Processes that read the images for evaluation: ``data.workers``, or what suits the machine."""
    if data.workers is not None:
        return data.workers
    if images.in_memory:
        return 0
    cores = os.cpu_count() or 1
    return min(MAX_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
