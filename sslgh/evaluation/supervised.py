"""A network trained on labels, judged by the test set.

Shapes: N images, C classes, F features.
"""

import logging
import math

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sslgh.data import ImageSet, input_size, load_images
from sslgh.data.remaining import renumbered, trained_images
from sslgh.evaluation.features import cached_features
from sslgh.evaluation.probing import loader_workers, print_stderr
from sslgh.evaluation.results import Result, Scores, write_results
from sslgh.evaluation.scoring import evaluate_scores, group_tightness
from sslgh.evaluation.unreadable import unreadable_names, without
from sslgh.functional import adjust_logits
from sslgh.models import CosineClassifier
from sslgh.models.serialization import load_backbone, load_classifier
from sslgh.recipe import Finetune, Recipe

log = logging.getLogger(__name__)

PROTOCOL, VERSION = "supervised", 1


def evaluate_run(recipe: Recipe, accelerator: Accelerator) -> list[Result]:
    """Judge a finetuned run by the test set and write ``probe/supervised.json``. Collective: call it on every rank.

    A network trained with ``ce``, every image drawn alike, is also judged with its logits adjusted afterwards (``la-posthoc``).
    A class without training images is never predicted, said once in the log. Classes and their counts are those
    that the run began with, whatever the source holds by now.

    Returns:
        One result, the same on all processes; none where the data have no labeled test images.

    Raises:
        DataError: If a class of the test images is none of the run's, or the training images are no longer those
            it was trained on.
        ValueError: If the run directory holds no network.
    """
    test = load_images(recipe.data, "test")
    if test is None or test.labels is None:
        accelerator.print(f"{recipe.name}: no labeled test images, so nothing is judged")
        return []
    own, class_counts, said = trained_images(recipe.directory, recipe.data)
    print_stderr(said, accelerator)
    # By name: a class folder that came since would shift the numbers against the rows of the classifier.
    test = renumbered(test, own.class_names, of="test images")
    counts = torch.from_numpy(class_counts)
    own = without(own, unreadable_names(own, recipe.directory, accelerator))
    backbone, _ = load_backbone(recipe.directory)
    size = input_size(recipe.data, own)
    features = [
        cached_features(
            backbone,
            part,
            size=size,
            weak=False,
            directory=recipe.directory,
            accelerator=accelerator,
            workers=loader_workers(recipe.data, part),
        )
        for part in (own, test)
    ]
    shared: list[list[Result]] = [[]]
    if accelerator.is_main_process:
        classifier = load_classifier(recipe.directory)
        shared = [[_result(recipe, classifier, counts, own, test, features)]]
        write_results(shared[0], recipe.directory)
    broadcast_object_list(shared)
    return shared[0]


def _result(
    recipe: Recipe,
    classifier: nn.Linear | CosineClassifier,
    counts: Tensor,
    own: ImageSet,
    test: ImageSet,
    features: list[Tensor | None],
) -> Result:
    settings, (train_features, test_features) = recipe.finetune, features
    assert settings is not None
    assert train_features is not None
    assert test_features is not None
    own_labels, labels = (torch.from_numpy(part.labels) for part in (own, test))
    pairs = {"train": (train_features, own_labels), "test": (test_features, labels)}
    return Result(
        protocol=PROTOCOL,
        version=VERSION,
        summary=f"trained on the long-tailed labels, {recipe.train.epochs} epochs, "
        + ("last weights" if settings.ema is None else f"moving average {settings.ema:g}"),
        settings=settings.model_dump(mode="json"),
        class_names=list(own.class_names),
        group_counts=counts.tolist(),
        train_counts=counts.tolist(),
        test_counts=torch.bincount(labels, minlength=len(counts)).tolist(),
        scores=_judged(classifier, test_features, labels, counts, settings),
        tightness={
            name: group_tightness(values[None], classes, counts, test_labels=labels)
            for name, (values, classes) in pairs.items()
        },
    )


@torch.no_grad()
def _judged(
    classifier: nn.Linear | CosineClassifier,
    features: Tensor,
    labels: Tensor,
    counts: Tensor,
    settings: Finetune,
) -> dict[str, Scores]:
    logits, prior = classifier(features), counts / counts.sum()
    if absent := (counts == 0).nonzero().flatten().tolist():
        log.warning("classes %s have no training image and are never predicted", absent)
    scores: dict[str, Tensor] = {settings.objective: logits}
    if settings.objective == "ce" and settings.sampling == "instance":
        scores["la-posthoc"] = adjust_logits(logits, prior, tau=settings.tau)
    # The lengths of a cosine classifier decide nothing.
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
