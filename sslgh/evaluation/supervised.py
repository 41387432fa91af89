"""Evaluation of a finetuned network on the test set.

Shapes: N images, C classes, F features.
"""

import logging
import math

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sslgh.data import ImageSet, input_size, load_images
from sslgh.data.run_images import renumbered, trained_images
from sslgh.evaluation.features import cached_features, unreadable_names, without
from sslgh.evaluation.measured_data import measured_on
from sslgh.evaluation.results import Result, Scores, write_results
from sslgh.evaluation.scoring import evaluate_scores, group_tightness
from sslgh.functional import adjust_logits
from sslgh.models import CosineClassifier
from sslgh.models.serialization import load_backbone, load_head
from sslgh.recipe import Finetune, Recipe
from sslgh.recipe.errors import some_of

log = logging.getLogger(__name__)

PROTOCOL, VERSION = "supervised", 1


def evaluate_run(recipe: Recipe, accelerator: Accelerator) -> list[Result]:
    """Evaluate a finetuned run on the test set and write ``probe/supervised.json``. Collective: call it on every rank.

    A network trained with ``ce`` on uniformly drawn images is also evaluated with logits adjusted post hoc
    (``la-posthoc``). A class without training images is never predicted, which is logged once. Classes and their
    counts are those that the run began with, whatever the source holds now.

    Returns:
        One result, the same on all ranks; none if the data have no labeled test images.

    Raises:
        DataError: If the run has no such class as one of the test images, or its training images have changed.
        ValueError: If the run directory holds no network.
    """
    test = load_images(recipe.data, "test")
    if test is None or test.labels is None:
        accelerator.print(
            f"{recipe.name}: no labeled test images, so nothing is evaluated, as the network has seen all others with "
            f"their labels; sslgh probe {recipe.directory} data.test_root=DIR evaluates it later"
        )
        return []
    train, class_counts = trained_images(recipe.directory, recipe.data)
    # By name: a new class folder would shift the class numbers against the rows of the classifier.
    test = renumbered(test, train.class_names, of="test images")
    counts = torch.from_numpy(class_counts)
    train = without(train, unreadable_names(train, recipe.directory, accelerator))
    backbone, card = load_backbone(recipe.directory)
    size = input_size(recipe.data, train, card["image_size"])
    features = [
        cached_features(
            backbone,
            part,
            recipe.data,
            size=size,
            directory=recipe.directory,
            accelerator=accelerator,
        )
        for part in (train, test)
    ]
    shared: list[list[Result]] = [[]]
    if accelerator.is_main_process:
        classifier = load_head(recipe.directory)
        shared = [[_result(recipe, classifier, counts, train, test, features)]]
        write_results(shared[0], recipe.directory)
    broadcast_object_list(shared)
    return shared[0]


def _result(
    recipe: Recipe,
    classifier: nn.Linear | CosineClassifier,
    counts: Tensor,
    train: ImageSet,
    test: ImageSet,
    features: list[Tensor | None],
) -> Result:
    settings, (train_features, test_features) = recipe.finetune, features
    assert settings is not None
    assert train_features is not None
    assert test_features is not None
    train_labels, labels = (torch.from_numpy(part.labels) for part in (train, test))
    pairs = {"train": (train_features, train_labels), "test": (test_features, labels)}
    return Result(
        protocol=PROTOCOL,
        version=VERSION,
        summary=f"trained on the long-tailed labels, {recipe.train.epochs} epochs, "
        + ("last weights" if settings.ema is None else f"moving average {settings.ema:g}"),
        settings=settings.model_dump(mode="json"),
        class_names=list(train.class_names),
        group_counts=counts.tolist(),
        train_counts=counts.tolist(),
        test_counts=torch.bincount(labels, minlength=len(counts)).tolist(),
        data=measured_on(recipe.data, train, test),
        scores=_scores(classifier, test_features, labels, counts, settings),
        tightness={
            name: group_tightness(values[None], classes, counts, test_labels=labels)
            for name, (values, classes) in pairs.items()
        },
    )


@torch.no_grad()
def _scores(
    classifier: nn.Linear | CosineClassifier,
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    settings: Finetune,
) -> dict[str, Scores]:
    logits, prior = classifier(features), counts / counts.sum()
    if absent := (counts == 0).nonzero().flatten().tolist():
        log.warning("classes %s have no training image and are never predicted", some_of(absent))
    scores: dict[str, Tensor] = {settings.objective: logits}
    if settings.objective == "ce" and settings.sampling == "instance":
        scores["la-posthoc"] = adjust_logits(logits, prior, tau=settings.tau)
    # The weight lengths of a cosine classifier have no effect.
    norms = classifier.weight.norm(dim=1)[None] if isinstance(classifier, nn.Linear) else None
    return {
        name: evaluate_scores(
            values.masked_fill(prior == 0, -math.inf)[None],
            labels,
            counts,
            weight_norms=norms,
        )
        for name, values in scores.items()
    }
