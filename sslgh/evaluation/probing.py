"""Probes of a frozen backbone, or of anyone's features.

Shapes: N images, F features, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sslgh.classify import Head, HeadEnsemble, HeadTraining, train_heads
from sslgh.data import DataError, ImageSet, input_size
from sslgh.evaluation.features import cached_features, check_features, unreadable_names, without
from sslgh.evaluation.out_of_fold import out_of_fold
from sslgh.evaluation.probe_settings import ProbePlan, plan_probes
from sslgh.evaluation.protocols import (
    NEIGHBOR_TEMPERATURE,
    LabeledImages,
    labeled_images,
    training_images,
    training_rows,
    warn_of_few_steps,
)
from sslgh.evaluation.results import (
    Result,
    Scores,
    measured_on,
    measured_on_features,
    write_results,
)
from sslgh.evaluation.scoring import (
    Predictions,
    evaluate_predictions,
    group_tightness,
    predict,
    rows_at_once,
)
from sslgh.functional.neighbors import nearest_neighbor_votes
from sslgh.models.last_two import LastTwo
from sslgh.preprocessing import Preprocessing
from sslgh.recipe.data import Data
from sslgh.recipe.schema import Probe, Recipe

UNSEEN = (
    "there is no labeled test set, and a backbone that was trained on the labels cannot be probed on the same images; "
    "set data.test_root or probe=[]"
)
# Test images that heads score at once.
MAX_ROWS = 8192


class Features(NamedTuple):
    """Features (N, F) with their labels (N,)."""

    values: Tensor
    labels: Tensor

    @classmethod
    def of(cls, values: Tensor, images: ImageSet) -> "Features":
        """Features of labeled images."""
        return cls(values, torch.from_numpy(images.labels))


class Classes(NamedTuple):
    """The classes of a data set: their names, and their images in pretraining, shape (C,)."""

    names: tuple[str, ...]
    counts: Tensor


def check_probes(
    data: Data,
    probes: Sequence[Probe],
    directory: Path | None = None,
    *,
    labels_seen: bool = False,
) -> None:
    """Refuse probes that cannot run on the data; worth calling before an hour of pretraining.

    Args:
        data: Data section of the recipe.
        probes: Probes to run.
        directory: Run directory of a run that may have begun; None: no run has begun.
        labels_seen: Whether the backbone is trained on the labels; they can then not be what it is tested on.

    Raises:
        DataError: If the data cannot serve them; the message names the way out.
        RecipeError: If a name is unknown or the settings of a probe do not go together.
    """
    plans = plan_probes(probes)
    if plans:
        images = labeled_images(data, directory)
        _training_images(plans, images)
        if labels_seen and images.test is None:
            raise DataError(UNSEEN)


def labels_seen(recipe: Recipe) -> bool:
    """Whether a backbone is trained on labels."""
    return recipe.finetune is not None and not recipe.finetune.freeze


def probe_backbone(
    backbone: nn.Module, recipe: Recipe, *, directory: Path, accelerator: Accelerator
) -> list[Result]:
    """Run the probes of a recipe and write ``directory/probe/*.json``. Collective: call it on every rank.

    All ranks extract features; rank 0 trains the heads. Without a labeled test set the results are out-of-fold
    estimates on the training labels.

    Args:
        backbone: (N, 3, S, S) to (N, F); not changed.
        recipe: Recipe whose ``data`` and ``probe`` sections are used.
        directory: Run directory; features are cached in it. If a run has recorded its images they are
            those of pretraining, unless ``data`` asks for others.
        accelerator: Processes and device.

    Returns:
        One result per probe, the same on all ranks.

    Raises:
        DataError: If the data have no labels or too few images for a protocol; if an image cannot be read, unless it
            is a training image that the run has found broken.
        RecipeError: If a name is unknown or the settings of a probe do not go together.
        ValueError: If features or labels cannot be used.
    """
    plans = plan_probes(recipe.probe)
    if not plans:
        return []
    images = labeled_images(recipe.data, directory)
    size = input_size(recipe.data, images.full_train, Preprocessing.of(backbone).size)
    kinds = dict.fromkeys(plan.probe.features for plan in plans)
    networks = {kind: backbone if kind == "last" else LastTwo(backbone) for kind in kinds}
    extract = partial(
        cached_features,
        data=recipe.data,
        size=size,
        directory=directory,
        accelerator=accelerator,
    )
    if images.test is None and labels_seen(recipe):
        raise DataError(UNSEEN)
    # Every set is selected, and refused, before the first image goes through the network.
    train_sets = _training_images(plans, images)
    broken: frozenset[str] = frozenset()
    if not images.full_train.in_memory:
        broken = unreadable_names(images.full_train, directory, accelerator)
    tests = {}
    if images.test is not None:
        tests = {kind: extract(network, images.test) for kind, network in networks.items()}
    classes = Classes(images.full_train.class_names, torch.from_numpy(images.class_counts))
    # Heads are solved and scores compared in float64, which mps does not have.
    device = torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
    results: list[Result] = []
    for plan, train_set in zip(plans, train_sets, strict=True):
        part = without(train_set, broken) if broken else train_set
        network, test = networks[plan.probe.features], tests.get(plan.probe.features)
        train = extract(network, part, weak=plan.protocol.weak)
        plain = extract(network, part) if images.test is None else None
        if train is None:  # another rank than 0
            continue
        seen = Features.of(train, part)
        if test is not None and images.test is not None:
            result = _run_probe(plan, seen, Features.of(test, images.test), classes, device)
        else:
            assert plain is not None
            result = _run_out_of_fold(plan, seen, plain, classes, device)
        tested = part if images.test is None else images.test
        results.append(replace(result, data=measured_on(recipe.data, part, tested)))
    if accelerator.is_main_process:
        write_results(results, directory)
    shared = [results]
    broadcast_object_list(shared)
    return shared[0]


def _training_images(plans: Sequence[ProbePlan], images: LabeledImages) -> list[ImageSet]:
    """The training images of every probe, checked."""
    parts = [training_images(plan.protocol, images) for plan in plans]
    num_classes = len(images.full_train.class_names)
    for plan, part in zip(plans, parts, strict=True):
        plan.check_data(num_classes=num_classes, num_images=len(part))
    return parts


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
    origin: str = "",
) -> list[Result]:
    """Run probes on given features, in this process.

    Training features are used as they are, without augmentation, whatever the protocol.

    Args:
        train_features: Shape (N, F).
        train_labels: Shape (N,), integers from 0.
        test_features: Shape (M, F).
        test_labels: Shape (M,).
        probes: Probes to run.
        directory: Results go to ``directory/probe/*.json``.
        class_counts: Images per class by which classes are many-, medium- or few-shot, shape (C,); None: those
            of the training labels.
        class_names: C names; None: numbers. Without names or counts C is one more than the largest label.
        device: Device on which heads train; None: the CPU.
        origin: Where the features come from, for the results.

    Raises:
        DataError: If a class holds too few images for a protocol.
        RecipeError: If a name is unknown or the settings of a probe do not go together.
        ValueError: If features or labels cannot be used, their classes or widths disagree, or there is not one count
            per class.
    """
    plans = plan_probes(probes)
    train, test = Features(train_features, train_labels), Features(test_features, test_labels)
    check_features(train, test)
    classes = _classes(train.labels, test.labels, class_counts, class_names)
    parts = []
    for plan in plans:
        rows = training_rows(plan.protocol, train.labels.cpu().numpy(), classes.names)
        parts.append(train if rows is None else Features(train.values[rows], train.labels[rows]))
        plan.check_data(num_classes=len(classes.names), num_images=len(parts[-1].labels))
    on = device or torch.device("cpu")
    results = [
        replace(
            _run_probe(plan, part, test, classes, on), data=measured_on_features(origin, part, test)
        )
        for plan, part in zip(plans, parts, strict=True)
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


def _run_probe(
    plan: ProbePlan, train: Features, test: Features, classes: Classes, device: torch.device
) -> Result:
    """Train the heads of a probe, or let neighbors vote, and evaluate on the test features."""
    train, test = (Features(*(part.to(device) for part in pair)) for pair in (train, test))
    counts = classes.counts.to(device)
    result = _result(plan, classes, train.labels, test.labels)
    tightness = {
        name: group_tightness(part.values[None], part.labels, counts, test_labels=test.labels)
        for name, part in (("train", train), ("test", test))
    }
    if not plan.heads:
        votes = evaluate_predictions(_votes(plan, train, test.values, counts), test.labels, counts)
        return replace(result, scores={"knn": votes}, tightness=tightness)
    heads = plan.select(*train, len(counts))
    scores = _train_and_evaluate(plan, heads, train, test, counts)
    return replace(result, scores=scores, tightness=tightness, chosen=plan.chosen(heads))


def _run_out_of_fold(
    plan: ProbePlan, train: Features, plain: Tensor, classes: Classes, device: torch.device
) -> Result:
    """`_run_probe` without a test set, on the training images, whose features without augmentation are ``plain``.

    Settings are chosen anew in every fold, on the images of the others.
    """
    train, plain = Features(*(part.to(device) for part in train)), plain.to(device)
    counts, folds = classes.counts.to(device), plan.probe.folds

    def predict_fold(seen: Tensor, held_out: Tensor) -> dict[str, Predictions]:
        part, values = Features(train.values[seen], train.labels[seen]), plain[held_out]
        if not plan.heads:
            return {"knn": _votes(plan, part, values, counts)}
        heads = plan.select(*part, len(counts))
        return _predictions(plan, heads, _trained(plan, heads, part, len(counts)), values)

    found, known = out_of_fold(train.labels, folds, predict_fold)
    labels = train.labels[known]
    result = _result(plan, classes, train.labels, labels)
    return replace(
        result,
        summary=f"{result.summary}; no test set: out-of-fold estimate on the training labels, {folds} folds",
        settings=result.settings | {"out_of_fold": folds},
        scores={name: evaluate_predictions(each, labels, counts) for name, each in found.items()},
    )


def _result(plan: ProbePlan, classes: Classes, train_labels: Tensor, test_labels: Tensor) -> Result:
    """A result without its numbers."""
    protocol, num_classes = plan.protocol, len(classes.names)
    as_set = "; lr or decay as set" if plan.probe.lr or plan.probe.weight_decay else ""
    return Result(
        protocol=protocol.name,
        version=protocol.version,
        summary=protocol.summary + as_set,
        settings=plan.settings(),
        class_names=list(classes.names),
        group_counts=classes.counts.tolist(),
        train_counts=torch.bincount(train_labels, minlength=num_classes).tolist(),
        test_counts=torch.bincount(test_labels, minlength=num_classes).tolist(),
        scores={},
    )


def _votes(plan: ProbePlan, train: Features, values: Tensor, counts: Tensor) -> Predictions:
    """Predictions of the nearest neighbors."""
    votes = nearest_neighbor_votes(
        values,
        train.values,
        train.labels,
        num_classes=len(counts),
        neighbors=plan.probe.neighbors,
        temperature=NEIGHBOR_TEMPERATURE,
    )
    # The softmax of the log shares is the shares; float64 keeps different shares apart.
    return predict([votes.double().log()[None]])


def _train_and_evaluate(
    plan: ProbePlan, heads: Mapping[str, Head], train: Features, test: Features, counts: Tensor
) -> dict[str, Scores]:
    """Train one head per objective, and evaluate each on the test features."""
    trained = _trained(plan, heads, train, len(counts))
    scores = {}
    for name, found in _predictions(plan, heads, trained, test.values).items():
        norms = trained.weight_norms(heads[name])
        tightness = {
            split: group_tightness(embeddings, part.labels, counts, test_labels=test.labels)
            for split, part in (("train", train), ("test", test))
            if (embeddings := trained.embeddings(heads[name], part.values)) is not None
        }
        evaluated = evaluate_predictions(found, test.labels, counts, weight_norms=norms)
        scores[name] = replace(evaluated, tightness=tightness or None)
    return scores


def _trained(
    plan: ProbePlan, heads: Mapping[str, Head], train: Features, num_classes: int
) -> HeadEnsemble:
    training = plan.protocol.heads
    assert training is not None
    if isinstance(training, HeadTraining) and plan.protocol.train != "longtail":
        warn_of_few_steps(plan.protocol.name, training, len(train.labels))
    return train_heads(
        *train,
        num_classes=num_classes,
        heads=list(heads.values()),
        training=training,
        seeds=plan.probe.seeds,
        progress=True,
    )


def _predictions(
    plan: ProbePlan, heads: Mapping[str, Head], trained: HeadEnsemble, values: Tensor
) -> dict[str, Predictions]:
    """Predictions by objective for the features of images."""
    test_prior = plan.expected_prior(trained.prior)
    rows = min(MAX_ROWS, rows_at_once(plan.probe.seeds * len(trained.prior)))
    return {
        name: predict(trained.scores(head, part, test_prior) for part in torch.split(values, rows))
        for name, head in heads.items()
    }
