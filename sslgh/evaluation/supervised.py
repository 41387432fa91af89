"""Evaluation of a finetuned network, on the test set or by networks of folds.

Shapes: N images, C classes, F features.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sslgh.data import ImageSet, input_size, load_images
from sslgh.data.folds import fold_data, read_folds
from sslgh.data.run_images import renumbered, trained_images
from sslgh.evaluation.features import cached_features, unreadable_names, without
from sslgh.evaluation.five_crop import five_crop_features
from sslgh.evaluation.results import Result, measured_on, write_results
from sslgh.evaluation.scoring import (
    Predictions,
    evaluate_predictions,
    evaluate_scores,
    group_tightness,
    predict,
)
from sslgh.functional import adjust_logits
from sslgh.models import CosineClassifier
from sslgh.models.serialization import CLASSIFIER, load_backbone, load_head
from sslgh.recipe import Finetune, Recipe
from sslgh.recipe.errors import some_of

log = logging.getLogger(__name__)

PROTOCOL, VERSION = "supervised", 1


def evaluate_run(recipe: Recipe, accelerator: Accelerator) -> list[Result]:
    """Evaluate a finetuned run and write ``probe/supervised.json``. Collective: call it on every rank.

    Without labeled test images, an out-of-fold estimate by the networks in ``folds/``. A network trained with ``ce`` on
    uniformly drawn images is also evaluated with logits adjusted post hoc (``la-posthoc``). A class without training
    images is never predicted, which is logged once. Classes and their counts are those that the run began with,
    whatever the source holds now.

    Returns:
        One result, the same on all ranks; none if there are neither labeled test images nor trained networks of folds.

    Raises:
        DataError: If the run has no such class as one of the test images, or its training images have changed.
        ValueError: If the run directory holds no network.
    """
    test = load_images(recipe.data, "test")
    labeled = test is not None and test.labels is not None
    if not labeled and (reason := _no_estimate(recipe)):
        accelerator.print(
            f"{recipe.name}: no labeled test images, so nothing is evaluated, {reason}"
        )
        return []
    train, class_counts = trained_images(recipe.directory, recipe.data)
    counts = torch.from_numpy(class_counts)
    train = without(train, unreadable_names(train, recipe.directory, accelerator))
    if labeled:
        assert test is not None
        # By name: a new class folder would shift the class numbers against the rows of the classifier.
        test = renumbered(test, train.class_names, of="test images")
        shared = [_on_test_images(recipe, train, test, counts, accelerator)]
    else:
        shared = [_out_of_fold(recipe, train, counts, accelerator)]
    if accelerator.is_main_process:
        write_results(shared[0], recipe.directory)
    broadcast_object_list(shared)
    return shared[0]


def _no_estimate(recipe: Recipe) -> str:
    """Why there is no out-of-fold estimate and what gives one; empty if there is one."""
    networks = read_folds(recipe.directory)
    if not networks:
        return (
            "as the network has seen all others with their labels; "
            f"sslgh probe {recipe.directory} data.test_root=DIR evaluates it later"
        )
    if all((network / CLASSIFIER).is_file() for network in networks):
        return ""
    return "and not all networks of its folds are trained; run sslgh finetune with its recipe again"


def _on_test_images(
    recipe: Recipe, train: ImageSet, test: ImageSet, counts: Tensor, accelerator: Accelerator
) -> list[Result]:
    """The result on test images; empty on other ranks than 0."""
    found = [_features(recipe.directory, part, recipe, accelerator) for part in (train, test)]
    crops = _crops(recipe.directory, test, recipe, accelerator)
    train_features, test_features = found
    if train_features is None or test_features is None:
        return []
    train_labels, labels = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    settings, classifier = recipe.finetune, load_head(recipe.directory)
    assert settings is not None
    # The weight lengths of a cosine classifier have no effect.
    norms = classifier.weight.norm(dim=1)[None] if isinstance(classifier, nn.Linear) else None
    scores = {
        name: evaluate_scores(values[None], labels, counts, weight_norms=norms)
        for name, values in _class_scores(classifier, crops, counts, settings).items()
    }
    pairs = {"train": (train_features, train_labels), "test": (test_features, labels)}
    tightness = {
        name: group_tightness(values[None], classes, counts, test_labels=labels)
        for name, (values, classes) in pairs.items()
    }
    return [replace(_result(recipe, train, test, counts), scores=scores, tightness=tightness)]


def _out_of_fold(
    recipe: Recipe, train: ImageSet, counts: Tensor, accelerator: Accelerator
) -> list[Result]:
    """The estimate by networks that have not seen what they predict; empty on other ranks than 0."""
    settings = recipe.finetune
    assert settings is not None
    folds = read_folds(recipe.directory)
    rows: list[int] = []
    found: list[dict[str, Predictions]] = []
    for directory, names in folds.items():
        _, fold_counts = trained_images(directory, fold_data(recipe.data, directory))
        held_out = [row for row, name in enumerate(train.names) if name in names]
        crops = _crops(directory, train.subset(held_out), recipe, accelerator)
        if not crops:
            continue
        head = load_head(directory)
        logits = _class_scores(head, crops, torch.from_numpy(fold_counts), settings)
        found.append({name: predict([values[None]]) for name, values in logits.items()})
        rows += held_out
    if not found:
        return []
    predicted = train.subset(rows)
    labels = torch.from_numpy(predicted.labels)
    joined = {
        name: Predictions(
            *(
                torch.cat(parts, dim=1)
                for parts in zip(*(fold[name] for fold in found), strict=True)
            )
        )
        for name in found[0]
    }
    scores = {name: evaluate_predictions(each, labels, counts) for name, each in joined.items()}
    result = _result(recipe, train, predicted, counts)
    return [
        replace(
            result,
            summary=f"{result.summary}; no test set: out-of-fold estimate by {len(folds)} further networks",
            settings=result.settings | {"out_of_fold": len(folds)},
            scores=scores,
        )
    ]


def _features(
    directory: Path, images: ImageSet, recipe: Recipe, accelerator: Accelerator
) -> Tensor | None:
    """Features (N, F) by the backbone of a run; None on other ranks than 0."""
    backbone, card = load_backbone(directory)
    size = input_size(recipe.data, images, card["image_size"])
    return cached_features(
        backbone, images, recipe.data, size=size, directory=directory, accelerator=accelerator
    )


def _crops(
    directory: Path, images: ImageSet, recipe: Recipe, accelerator: Accelerator
) -> list[Tensor]:
    """Features (N, F) of what is classified: the central crop, or five; empty on other ranks than 0."""
    assert recipe.finetune is not None
    enlarge = recipe.finetune.five_crop
    if enlarge is None:
        features = _features(directory, images, recipe, accelerator)
        return [] if features is None else [features]
    backbone, card = load_backbone(directory)
    size = input_size(recipe.data, images, card["image_size"])
    found = five_crop_features(
        backbone, images, recipe.data, size=size, enlarge=enlarge, accelerator=accelerator
    )
    return found if accelerator.is_main_process else []


def _result(recipe: Recipe, train: ImageSet, test: ImageSet, counts: Tensor) -> Result:
    """A result without its numbers."""
    settings = recipe.finetune
    assert settings is not None
    return Result(
        protocol=PROTOCOL,
        version=VERSION,
        summary=f"trained on the long-tailed labels, {recipe.train.epochs} epochs, "
        + ("last weights" if settings.ema is None else f"moving average {settings.ema:g}")
        + ("" if settings.five_crop is None else ", logits of five crops averaged"),
        settings=settings.model_dump(mode="json"),
        class_names=list(train.class_names),
        group_counts=counts.tolist(),
        train_counts=counts.tolist(),
        test_counts=test.class_counts.tolist(),
        data=measured_on(recipe.data, train, test),
        scores={},
    )


@torch.no_grad()
def _class_scores(
    classifier: nn.Linear | CosineClassifier,
    crops: Sequence[Tensor],
    counts: Tensor,
    settings: Finetune,
) -> dict[str, Tensor]:
    """Class scores (N, C) by objective, -inf for a class without training images; the mean over crops."""
    logits = torch.stack([classifier(features) for features in crops]).mean(0)
    prior = counts / counts.sum()
    if absent := (counts == 0).nonzero().flatten().tolist():
        log.warning("classes %s have no training image and are never predicted", some_of(absent))
    scores: dict[str, Tensor] = {settings.objective: logits}
    if settings.objective == "ce" and settings.sampling == "instance":
        scores["la-posthoc"] = adjust_logits(logits, prior, tau=settings.tau)
    return {name: values.masked_fill(prior == 0, -math.inf) for name, values in scores.items()}
